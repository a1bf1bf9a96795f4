"""Values that every room knows: errors, answers, money, limits, times. Imports nothing of ours."""
