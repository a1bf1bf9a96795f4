import sys
from benchmarks import hits
for line in hits.table(quick="--quick" in sys.argv):
    print(line, flush=True)
