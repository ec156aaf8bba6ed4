#!/bin/bash
# As the image's own, for what the tests use: the first user by variables with or without _FILE, and the step to its user.
set -euo pipefail

value() {
  local file="${1}_FILE"
  if [ -n "${!file:-}" ]; then cat "${!file}"; else echo -n "${!1:-}"; fi
}

if [ "$1" != mongod ]; then exec "$@"; fi
if [ "$(id -u)" = 0 ]; then
  chown -R mongodb:mongodb /data/db
  exec setpriv --reuid mongodb --regid mongodb --init-groups "$0" "$@"
fi
options=()
user=$(value MONGO_INITDB_ROOT_USERNAME)
if [ -n "$user" ]; then
  options=(--test-enable-new-auth --setup-database=admin "--setup-username=$user"
    "--setup-password=$(value MONGO_INITDB_ROOT_PASSWORD)")
fi
exec ferretdb --handler=sqlite --sqlite-url=file:/data/db/ --listen-addr=:27017 --state-dir=/data/db --telemetry=disable \
  --debug-addr=- "${options[@]}"
