"""`python -m tests.clients`: run real Gemini clients against the emulator and print the table of what works.

Each client is installed into a folder of its own under `--cache` (a virtual environment, or node_modules), from PyPI or
npm, and its probe from `tests/clients/probes/` asks an emulator on the loopback. `--write` puts the table into
docs/emulator.md. The first run downloads about a gigabyte. Exits with 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtllm.emulator import Emulator, parse_model

PROJECT = Path(__file__).resolve().parent.parent.parent
PROBES = Path(__file__).resolve().parent / "probes"
PAGE = PROJECT / "docs" / "emulator.md"
BEGIN, END = "<!-- clients: begin -->", "<!-- clients: end -->"

CHECKS = ("text", "stream", "limit", "json", "enum", "tools", "count", "models", "thinking", "error")
MODELS = ("closed-model=closed", "gemini-closed=closed", "level-model=level")
INSTALL_SECONDS, PROBE_SECONDS = 900, 120


@dataclass(frozen=True, slots=True)
class ClientUnderTest:
    """One client in one version."""

    title: str
    probe: str
    """The file in `probes/`: Python's or Node's, by its ending."""
    packages: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Return the name of the folder that it is installed into."""
        return self.title.replace("@", "").replace("/", "-").replace(" ", "-")


CLIENTS = (
    ClientUnderTest("google-generativeai 0.8.6", "google_generativeai.py", ("google-generativeai==0.8.6",)),
    ClientUnderTest("google-genai 2.19.0", "google_genai.py", ("google-genai==2.19.0",)),
    ClientUnderTest("google-genai 3.4.0", "google_genai.py", ("google-genai==3.4.0",)),
    ClientUnderTest("google-genai 3.6.1", "google_genai.py", ("google-genai==3.6.1",)),
    ClientUnderTest("@google/genai 2.32.0", "google-genai.mjs", ("@google/genai@2.32.0",)),
    ClientUnderTest("@google/genai 3.1.0", "google-genai.mjs", ("@google/genai@3.1.0",)),
    ClientUnderTest("ai 6.0.326", "ai-sdk.mjs", ("ai@6.0.326", "@ai-sdk/google@3.0.141", "zod@4")),
    ClientUnderTest("ai 7.0.173", "ai-sdk.mjs", ("ai@7.0.173", "@ai-sdk/google@4.0.121", "zod@4")),
    ClientUnderTest("genkit 1.42.0", "genkit.mjs", ("genkit@1.42.0", "@genkit-ai/google-genai@1.42.0")),
    ClientUnderTest("langchain-google-genai 4.4.2", "langchain_probe.py", ("langchain-google-genai==4.4.2",)),
    ClientUnderTest("litellm 1.108.7", "litellm_probe.py", ("litellm==1.108.7",)),
    ClientUnderTest("pydantic-ai 2.68.0", "pydantic_ai_probe.py", ("pydantic-ai-slim[google]==2.68.0",)),
    ClientUnderTest("instructor 1.17.0", "instructor_probe.py", ("instructor[google-genai]==1.17.0",)),
    ClientUnderTest("google-adk 2.13.0", "google_adk.py", ("google-adk==2.13.0",)),
)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one check of one client gave."""

    check: str
    ok: bool
    note: str = ""


def install(client: ClientUnderTest, cache: Path) -> Path:
    """Return the folder of a client, installed if it was not."""
    folder = cache / client.folder
    done = folder / ".installed"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for command in _install_commands(client, folder):
            subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_SECONDS, stdout=subprocess.DEVNULL)
        done.touch()
    return folder


def _install_commands(client: ClientUnderTest, folder: Path) -> Iterator[list[str]]:
    if client.probe.endswith(".mjs"):
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        yield ["npm", "install", "--silent", "--no-audit", "--no-fund", *client.packages]
    else:
        venv.create(folder, with_pip=True)
        yield [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *client.packages]


def probe(client: ClientUnderTest, folder: Path, url: str) -> list[ProbeResult]:
    """Return what a client's probe told about the server at `url`."""
    node = client.probe.endswith(".mjs")
    where = folder if node else PROBES
    if node:  # Node looks for packages beside the file
        for name in ("harness.mjs", client.probe):
            shutil.copy(PROBES / name, folder)
    program = "node" if node else str(folder / "bin" / "python")
    plain = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    run = subprocess.run(
        [program, client.probe],
        cwd=where,
        env={**plain, "GEMINI_URL": url, "NO_PROXY": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=PROBE_SECONDS,
        check=False,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith('{"check"')]
    results = [ProbeResult(**json.loads(line)) for line in lines]
    return results or [ProbeResult("text", ok=False, note=(run.stderr.strip().splitlines() or ["silence"])[-1][:200])]


def make_table(rows: Sequence[tuple[ClientUnderTest, Sequence[ProbeResult]]]) -> str:
    """Return the table in Markdown: yes, no, or empty where a client has no such call."""
    lines = [f"| client | {' | '.join(CHECKS)} |", f"| --- |{' --- |' * len(CHECKS)}"]
    for client, results in rows:
        told = {result.check: "yes" if result.ok else "**no**" for result in results}
        lines.append(f"| {client.title} | {' | '.join(told.get(check, '') for check in CHECKS)} |")
    return "\n".join(lines)


def write_table(table: str) -> None:
    """Put the table into the page about the emulator."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the clients; return 1 when a check failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="clients whose title holds this")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "mtllm-clients", help="where they are kept"
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/emulator.md")
    options = parser.parse_args(argv)
    rows = []
    with Emulator(models=map(parse_model, MODELS)) as emulator:
        for client in CLIENTS:
            if options.only not in client.title:
                continue
            results = probe(client, install(client, options.cache), emulator.url)
            rows.append((client, results))
            for result in results:
                print(f"{client.title:<32}{result.check:<10}{'yes' if result.ok else 'NO'}  {result.note}", flush=True)
    table = make_table(rows)
    print(table)
    if options.write:
        write_table(table)
    return 0 if all(result.ok for _, results in rows for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
