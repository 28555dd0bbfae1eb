#!/usr/bin/env bash
# Makes build/events/index.html of docs/asyncapi.json: a page that a browser opens from the disk, with AsyncAPI's own
# React component beside it. Needs npm, and the package the first time. Usage: docs/events-page.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/events}
package=@asyncapi/react-component version=3.2.1
integrity=k5ZqJd6+oxYaQ2o6F3rGWJ1MTIjXdpsUYB3NKQbVqr4yzrN0Ovj5c7eZx8NGd3wfKPhbOrLREtYl9K2OPfnSsA==
mkdir -p "$folder"
if ! [ -f "$folder/asyncapi-$version.js" ]; then
  got=$(mktemp -d)
  trap 'rm -rf "$got"' EXIT
  (cd "$got" && npm pack --silent "$package@$version" > /dev/null)
  archive=$(echo "$got"/*.tgz)
  if [ "$(openssl dgst -sha512 -binary "$archive" | openssl base64 -A)" != "$integrity" ]; then
    echo "events-page: $package $version is not the one that was reviewed: its SHA-512 is another" >&2
    exit 1
  fi
  tar -xzf "$archive" -C "$got" package/browser/standalone/index.js package/styles/default.min.css package/LICENSE
  cp "$got/package/styles/default.min.css" "$folder/asyncapi.css"
  cp "$got/package/LICENSE" "$folder/asyncapi.LICENSE"
  cp "$got/package/browser/standalone/index.js" "$folder/asyncapi-$version.js"
fi
{
  echo '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>airmesh events</title>'
  echo '<link rel="stylesheet" href="asyncapi.css"></head><body><div id="page"></div>'
  echo "<script src=\"asyncapi-$version.js\"></script><script>"
  echo 'const schema ='
  sed 's|</|<\\/|g' docs/asyncapi.json
  echo ';AsyncApiStandalone.render({schema, config: {show: {sidebar: true, errors: true}}}, document.getElementById("page"));'
  echo '</script></body></html>'
} > "$folder/index.html"
echo "$folder/index.html"
