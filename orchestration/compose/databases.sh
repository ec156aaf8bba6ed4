#!/bin/bash
# Gives each program that uses PostgreSQL its role and its databases. Runs at each start, over the server's socket, and
# changes what an earlier version has left: there one role owned everything.
set -euo pipefail

own() {
  DATABASE_ROLE=$2 psql --quiet --no-psqlrc --username=gpt2 --dbname=gpt2 --variable=ON_ERROR_STOP=1 \
    --variable=database="$1" --variable=role="$2" <<'SQL'
\set password `cat "/run/secrets/$DATABASE_ROLE"`
SELECT format('CREATE ROLE %I', :'role') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" LOGIN PASSWORD :'password';
SELECT format('CREATE DATABASE %I', :'database')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
ALTER DATABASE :"database" OWNER TO :"role";
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
\connect :"database"
ALTER SCHEMA public OWNER TO :"role";
SELECT format('ALTER TABLE %s OWNER TO %I', oid::regclass, :'role') FROM pg_class
  WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
  AND pg_get_userbyid(relowner) <> :'role' \gexec
-- The sequence of a column has followed its table.
SELECT format('ALTER SEQUENCE %s OWNER TO %I', oid::regclass, :'role') FROM pg_class
  WHERE relnamespace = 'public'::regnamespace AND relkind = 'S' AND pg_get_userbyid(relowner) <> :'role' \gexec
SELECT format('ALTER TYPE %s OWNER TO %I', oid::regtype, :'role') FROM pg_type
  WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd') AND pg_get_userbyid(typowner) <> :'role' \gexec
SQL
}

for name in exporter tokenizer trainer registry airflow; do own "$name" "$name"; done
own tfx airflow
