"""Events: CloudEvents 1.0 on Kafka, through a transactional outbox."""
