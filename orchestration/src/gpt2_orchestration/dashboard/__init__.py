"""The dashboard: one page with runs, models, dead letters and the health of the services, from a small web server.

It is stateless and has no rights beyond the token of its environment, with which it calls the services as the `gpt2`
command does. The page is plain HTML, CSS and ES modules in `static/`.

    server.py         start here: the application and its server
    settings.py       environment variables
    request_guard.py  checks of every request, and the headers of every response
    errors.py         the HTTP status and message of every error
    live.py           changes, for the page's event stream
    event_reader.py   the consumer of Kafka's events
    serialization.py  messages as the JSON below
    lineage.py        the graph of a run's artifacts
    charts.py         metrics and samples of a training, from TensorBoard
    routes/           the API

The API. Times are ISO 8601 in UTC, or null. Where a service is away, lists hold what the others know, and `troubles`
has `{"service", "message"}` for each that does not answer.

    GET  /healthz                          200 while the server runs, whatever the services do
    GET  /api/v1/services                  {"services": [{"name", "address", "ok", "version", "message"}], "links"}
    GET  /api/v1/runs?limit=50             {"runs": [run], "more", "troubles"}, newest first; limit 1 to 5000
    GET  /api/v1/runs/RUN                  {"run", "lineage": {"nodes", "edges"}, "troubles"}; 404
    POST /api/v1/runs/RUN/cancel           {"reason"}: {"jobs": [id]} whose cancellation is requested
    POST /api/v1/runs/RUN/continue         {}: {"jobs": [id]} that are requeued
    GET  /api/v1/runs/RUN/training         {"trainings": [{"job_id", "charts", "samples", "message"}]}
    GET  /api/v1/models                    {"models": [{"name", "labels", "latest_version"}]}
    GET  /api/v1/models/NAME               {"name", "versions", "changes", "more"}; newest first; 404
    GET  /api/v1/models/NAME/comparison    ?versions=1,2: {"name", "versions", "metrics", "evaluations", "parameters",
                                           "lineage", "samples"}, values in the order of the versions; 404
    POST /api/v1/models/NAME/label         {"label", "version", "actor", "reason"}: version 0 takes the label away; 403
                                           where the dashboard's token may not act for an actor
    GET  /api/v1/dead-letters              {"letters": [{"place", "time", "reason", "consumer", "topic", "payload"}]}
    POST /api/v1/dead-letters/replay       {"places": [place]}: {"sent"}; at least one place
    GET  /api/v1/events                    text/event-stream of `job`, `label` and `troubles`

A POST needs `Content-Type: application/json` and the header `X-Gpt2-Dashboard: 1`, and must come from the page's own
origin. An error is `{"error": {"code", "message"}}`: the gRPC code's name and one sentence, the service's own where it
refused.
"""
