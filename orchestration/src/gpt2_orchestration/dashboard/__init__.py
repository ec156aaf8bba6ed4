"""The dashboard: runs, models, dead letters and the services' health, on one page that a small web server gives.

It keeps nothing and may nothing of its own: it asks the services with the token of its environment, as the `gpt2`
command does, and shows what they answer. The page is plain HTML, CSS and ES modules in `static/`.

    server.py       start here: settings to a server that runs until a signal
    settings.py     where it listens, and where what it asks is
    guard.py        what every request must fulfil, and the headers of every answer
    errors.py       the HTTP status and sentence of every error
    services.py     the services, over channels that stay open
    run_list.py     the newest runs of all services
    live.py         changes as they come, for the page's event stream
    describing.py   messages as the JSON below
    lineage.py      what was made of what
    curves.py       figures and samples of a training, from TensorBoard
    routes/         the API

The API. Times are ISO 8601 in UTC, or null. Where a service is away, lists hold what the others know, and `troubles`
has `{"service", "message"}` for each that is not heard.

    GET  /healthz                          200 while the server runs, whatever the services do
    GET  /api/v1/services                  {"services": [{"name", "address", "ok", "version", "message"}], "links"}
    GET  /api/v1/runs?limit=50             {"runs": [run], "more", "troubles"}, newest first; limit 1 to 5000
    GET  /api/v1/runs/RUN                  {"run", "lineage": {"nodes", "edges"}, "troubles"}; 404
    POST /api/v1/runs/RUN/cancel           {"reason"}: {"jobs": [id]} that were told to stop
    POST /api/v1/runs/RUN/continue         {}: {"jobs": [id]} that go on
    GET  /api/v1/runs/RUN/training         {"trainings": [{"job_id", "charts", "samples", "message"}]}
    GET  /api/v1/models                    {"models": [{"name", "labels", "latest_version"}]}
    GET  /api/v1/models/NAME               {"name", "versions", "changes", "more"}; newest first; 404
    GET  /api/v1/models/NAME/comparison    ?versions=1,2: {"name", "versions", "metrics", "evaluations", "parameters",
                                           "lineage", "samples"}, values in the order of the versions; 404
    POST /api/v1/models/NAME/label         {"label", "version", "actor", "reason"}: version 0 takes the label away
    GET  /api/v1/dead-letters              {"letters": [{"place", "time", "reason", "consumer", "topic", "payload"}]}
    POST /api/v1/dead-letters/replay       {"places": [place]}: {"sent"}; at least one place
    GET  /api/v1/events                    text/event-stream of `job`, `label` and `troubles`

A POST needs `Content-Type: application/json` and the header `X-Gpt2-Dashboard: 1`, and must come from the page's own
origin. An error is `{"error": {"code", "message"}}`: the gRPC code's name and one sentence, the service's own where it
refused.
"""
