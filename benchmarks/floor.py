"""The floor that the service is measured against: the least that Flask can do for a JSON request.

    python -m benchmarks.floor --port 9200 --threads 4

Bare Flask on waitress; one route parses the JSON body and returns about 400 bytes through `jsonify`. Nothing is
checked, counted, logged or kept; waitress is told not to log the depth of its queue, which would slow it down.
"""

from __future__ import annotations

import argparse
import logging

from flask import Flask, Response, jsonify, request

PATH = "/echo"
ANSWER = "This answer is as long as one of the service's own, which is what makes the two comparable. " * 3


def create_app() -> Flask:
    """The application with its two routes, `/echo` and `/health`."""
    app = Flask("floor", static_folder=None)

    @app.post(PATH)
    def echo() -> Response:
        asked = request.get_json()
        return jsonify(
            generated_text=ANSWER,
            model="none",
            finish_reason="stop",
            usage={"input_tokens": len(asked["prompt"]), "output_tokens": 60, "source": "none"},
        )

    @app.get("/health")
    def health() -> Response:
        return jsonify(status="healthy")

    return app


def main(arguments: list[str] | None = None) -> None:
    """Serve until killed."""
    import waitress

    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description="Bare Flask on waitress.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args(arguments)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    waitress.serve(create_app(), host="127.0.0.1", port=options.port, threads=options.threads, _quiet=True)


if __name__ == "__main__":
    main()
