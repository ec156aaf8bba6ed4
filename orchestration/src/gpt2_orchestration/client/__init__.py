"""What asks the services: connections, jobs, runs and events, for commands, pages and pipelines alike."""
