#!/bin/bash
# As the image's own, for what the tests use: variables with or without _FILE, the first set-up, its files.
set -euo pipefail

value() {
  local file="${1}_FILE"
  if [ -n "${!file:-}" ]; then cat "${!file}"; else echo -n "${!1:-$2}"; fi
}

if [ "$1" = postgres ] && [ "$(id -u)" = 0 ]; then
  install -d -o postgres -g postgres -m 700 "$PGDATA"
  chown -R postgres:postgres "$PGDATA" /var/run/postgresql
  exec gosu postgres "$0" "$@"
fi

if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  user=$(value POSTGRES_USER postgres)
  database=$(value POSTGRES_DB "$user")
  password=$(value POSTGRES_PASSWORD "")
  [ -n "$password" ] || { echo "Error: POSTGRES_PASSWORD is not specified" >&2; exit 1; }
  # shellcheck disable=SC2086  # The options of initdb are words.
  initdb --username="$user" --pwfile=<(echo "$password") ${POSTGRES_INITDB_ARGS:-} >/dev/null
  printf '\nhost all all all scram-sha-256\n' >> "$PGDATA/pg_hba.conf"
  pg_ctl --wait start --options="-c listen_addresses=''" >/dev/null
  export PGPASSWORD="$password"
  run() { psql --variable=ON_ERROR_STOP=1 --no-password --no-psqlrc --username="$user" "$@"; }
  [ "$database" = postgres ] || run --dbname=postgres --command="CREATE DATABASE \"$database\"" >/dev/null
  export POSTGRES_USER="$user" POSTGRES_DB="$database"
  for file in /docker-entrypoint-initdb.d/*; do
    case $file in
      *.sql) run --dbname="$database" --file="$file" ;;
      # shellcheck disable=SC1090
      *.sh) if [ -x "$file" ]; then "$file"; else . "$file"; fi ;;
    esac
  done
  unset PGPASSWORD
  pg_ctl --mode=fast --wait stop >/dev/null
  echo "PostgreSQL init process complete; ready for start up."
fi
exec "$@"
