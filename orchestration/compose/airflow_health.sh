#!/bin/bash
# Whether Airflow's web server reports a component healthy: dag_processor, metadatabase, scheduler or triggerer. The page
# answers 200 also while a component is dead; what it says of each counts.
set -euo pipefail
exec 3<>"/dev/tcp/${AIRFLOW_HEALTH_HOST:-airflow-webserver}/8080"
printf 'GET /health HTTP/1.0\r\n\r\n' >&3
timeout 4 cat <&3 | tr -d ' \n' | grep -Eq "\"$1\":\{[^}]*\"status\":\"healthy\""
