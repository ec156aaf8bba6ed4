#!/bin/bash
# shellcheck disable=SC2086  # Options of Java are words.
exec java ${KAFKA_HEAP_OPTS:--Xmx256M} ${KAFKA_JVM_PERFORMANCE_OPTS:--server -XX:+UseG1GC} ${KAFKA_OPTS:-} \
  "-Dlog4j2.configurationFile=${KAFKA_LOG4J_FILE:-/etc/kafka/docker/tools-log4j2.yaml}" -cp '/opt/kafka/libs/*' "$@"
