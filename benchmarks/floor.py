"""The floor that the service is measured against: the least that Flask can do for a JSON request.

    python -m benchmarks.floor --port 9200 --threads 4 [--gemini URL]

Bare Flask on waitress; one route parses the JSON body and returns about 400 bytes through `jsonify`, another asks
Gemini at URL through the SDK as its documentation has it. Nothing is checked, counted, logged or kept; waitress is told
not to log the depth of its queue, which would slow it down.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

from flask import Flask, Response, jsonify, request

PATH = "/echo"
PROXY_PATH = "/ask"
MODEL = "gemini-2.5-flash-lite"
ANSWER = "This answer is as long as one of the service's own, which is what makes the two comparable. " * 3


def sdk_model(url: str) -> Any:
    """The SDK's model, which asks the emulator at `url`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the SDK's support has ended, and it says so
        from google.generativeai import client, generative_models
    client.configure(api_key="benchmark", transport="rest", client_options={"api_endpoint": url})
    return generative_models.GenerativeModel(MODEL)


def create_app(gemini: str | None = None) -> Flask:
    """The application with its routes: `/echo`, `/health` and, with an emulator's URL, `/ask`."""
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

    if gemini is not None:
        model = sdk_model(gemini)

        @app.post(PROXY_PATH)
        def ask() -> Response:
            return jsonify(generated_text=model.generate_content(request.get_json()["prompt"]).text)

    return app


def main(arguments: list[str] | None = None) -> None:
    """Serve until killed."""
    import waitress

    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description="Bare Flask on waitress.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--gemini", metavar="URL", default=None)
    options = parser.parse_args(arguments)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    waitress.serve(
        create_app(options.gemini), host="127.0.0.1", port=options.port, threads=options.threads, _quiet=True
    )


if __name__ == "__main__":
    main()
