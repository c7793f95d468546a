#!/usr/bin/env bash
# Builds the page as the folder `site` of static files, for any web server: site.sh [--threads | --no-build].
# --threads also builds the engine with threads (see build.sh). --no-build takes the engine from `pkg`, where build.sh has built it before.
set -euo pipefail
cd "$(dirname "$0")"
[ "${1:-}" = --no-build ] || ./build.sh "$@"
model=hart-emoji

rm -rf site
mkdir -p "site/$model"
cp -- *.html *.css *.js site
# The look is that of the web server's page.
cp ../src/web/page/style.css ../src/web/page/icon.svg site
cp -R pkg site

# The model, with a list of its files and their sizes, so that the page asks for no others.
for part in llm text tokenizer; do cp -R "../models/$model/$part" "site/$model"; done
(
  cd "site/$model"
  separator='{'
  for file in */*; do
    printf '%s\n  "%s": %d' "$separator" "$file" "$(wc -c <"$file")"
    separator=,
  done
  printf '\n}\n'
) >site/files.json
mv site/files.json "site/$model"
echo "examples/browser/site: $(du -sh site | cut -f 1)"
