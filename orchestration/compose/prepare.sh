#!/bin/bash
# Makes what the containers of docker-compose.yml need before they start: secrets and folders. Runs at each start, and
# leaves what exists as it is.
#
#   prepare                    makes what is missing
#   prepare show NAME          prints a secret
#   prepare set NAME           takes a secret from standard input, before the first start of what uses it
#
# `all/` has the secrets; each other folder of the volume holds what one container reads, and is mounted there alone.
set -euo pipefail
umask 077
secrets=/secrets
services="exporter tokenizer trainer registry"
databases="$services airflow"

make_secret() {
  local file="$secrets/all/$1"
  [ -s "$file" ] || { head -c "$2" /dev/urandom | od -An -tx1 | tr -d ' \n' >"$file.part" && mv "$file.part" "$file"; }
}

secret() { cat "$secrets/all/$1"; }

# give CONTAINER UID FILE: standard input becomes a file that only this user of this container reads.
give() {
  cat >"$secrets/$1/$3.part"
  chmod 0400 "$secrets/$1/$3.part"
  chown "$2:$2" "$secrets/$1/$3.part"
  mv "$secrets/$1/$3.part" "$secrets/$1/$3"
}

case "${1:-}" in
  show) secret "$2"; echo; exit ;;
  set) install -d "$secrets/all"; tr -d '\n' >"$secrets/all/$2"; exit ;;
esac

install -d -m 0700 "$secrets/all"
for name in $databases postgres; do make_secret "${name}_database_password" 24; done
for name in mongodb_password s3_password airflow_admin_password airflow_secret_key; do make_secret "$name" 24; done
if [ ! -s "$secrets/all/airflow_fernet_key" ]; then
  head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n' >"$secrets/all/airflow_fernet_key"
fi

for name in $services postgres databases mongodb airflow dashboard s3; do install -d -m 0755 "$secrets/$name"; done
secret postgres_database_password | give postgres 999 password
for name in $databases; do secret "${name}_database_password" | give databases 999 "$name"; done
for name in $services; do
  echo "postgres:5432:*:$name:$(secret "${name}_database_password")" | give "$name" 10001 pgpass
  printf '[default]\naws_access_key_id = gpt2\naws_secret_access_key = %s\n' "$(secret s3_password)" \
    | give "$name" 10001 aws_credentials
done
secret mongodb_password | give mongodb 999 password
echo "mongodb://gpt2:$(secret mongodb_password)@mongodb:27017/?authSource=admin" | give exporter 10001 gpt2_mongodb_uri
echo "postgres:5432:*:airflow:$(secret airflow_database_password)" | give airflow 10001 pgpass
for name in admin_password fernet_key secret_key; do secret "airflow_$name" | give airflow 10001 "$name"; done
secret s3_password | give s3 0 password
# Tokens of clients, where `set` has brought them: docker-compose.clients.yml.
for name in $services dashboard airflow; do
  case $name in dashboard | airflow) token="${name}_token" ;; *) token=services_token ;; esac
  [ ! -s "$secrets/all/$token" ] || secret "$token" | give "$name" 10001 gpt2_client_token
done

# Volumes that no image gives an owner, or that an earlier version has filled as root.
for folder in /volumes/*; do
  [ "$(stat -c %u "$folder")" = 10001 ] || chown -R 10001:10001 "$folder"
done
