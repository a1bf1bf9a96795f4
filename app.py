"""The front door: `create_app`, the lazy `app` and `main()`.

`app` itself is built on first access (`waitress-serve app:app`); importing this module starts nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mtllm.project import require_packages

if __name__ == "__main__":
    require_packages()  # before the imports that would fail without a word of help

from mtllm import __version__, process, wiring
from mtllm.chat.task import CHAT
from mtllm.http import shapes
from mtllm.http.application import Api
from mtllm.http.dispatcher import waiting
from mtllm.pages import dashboard, landing, swagger
from mtllm.settings import Settings, SettingsError, load_settings, require_writable_folders
from mtllm.stats import health, me, metrics_page, stats, usage
from mtllm.stats.metrics import Metrics
from mtllm.stats.recent import Recent
from mtllm.stats.sources import MetricsSources, StatsSources
from mtllm.tasks import TASKS, Task
from mtllm.wiring import Clock

SERVED = (*TASKS, CHAT)
"""What is served unless whoever makes the application says otherwise."""

__all__ = ["Api", "create_app", "main"]


def create_app(
    settings: Settings,
    tasks: Sequence[Task] = SERVED,
    *,
    clock: Clock = time.time,
    monotonic: Clock = time.monotonic,
) -> Api:
    """Return the application that `settings` describe. Opens nothing; the first request does. Raises SettingsError."""
    service = wiring.build(settings, clock=clock, monotonic=monotonic, waiting=waiting)
    app = Api(settings, service, tasks, clock=clock, monotonic=monotonic)
    observed, recent = Metrics(app.url_map), Recent()
    app.observers = (service.logger.record, observed.observe, recent.observe)
    health.register(app, service.parts.checks, service.cache, clock)
    usage.register(app, service.ledger, clock)
    me.register(
        app,
        me.OwnViewSources(
            ledger=service.ledger,
            limiter=service.limiter,
            limits=settings.rate_limits,
            budgets=service.budgets,
            models=lambda: service.chain.allowed,
            clock=clock,
        ),
    )
    stats.register(
        app,
        StatsSources(
            settings=settings,
            tasks=tasks,
            clock=clock,
            ledger=service.ledger,
            cache=service.cache,
            limiter_table=service.limiter_table,
            spend=service.spend,
            redis=service.redis,
            drift=service.drift,
            chain=service.chain,
            recorder=service.recorder,
            breakers=service.breakers,
            admission=service.admission,
            lifecycle=app.lifecycle,
            metrics=observed,
            recent=recent,
        ),
    )
    metrics_page.register(
        app,
        MetricsSources(
            tasks=tasks,
            daily_budget=settings.daily_budget_usd,
            monthly_budget=settings.monthly_budget_usd,
            alerts=service.alerts,
            clock=clock,
            observed=observed,
            spend=service.spend,
            lifecycle=app.lifecycle,
            cache=service.cache,
            limiter_table=service.limiter_table,
            breakers=service.breakers,
            redis=service.redis,
            admission=service.admission,
            ledger=service.ledger,
            logger=service.logger,
        ),
    )
    shapes.register_models(app, lambda: service.chain.allowed, clock)
    landing.register(app)
    dashboard.register(app, service.keys)
    swagger.register(app, settings, tasks, open_to_all=service.keys.open)
    for warning in service.warnings():
        print(f"Warning: {warning}", file=sys.stderr)
    return app


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    with exit_on_bad_settings(_GUNICORNS_BOOT_ERROR if "gunicorn.arbiter" in sys.modules else 2):
        settings = load_settings()
        require_writable_folders(settings)
        app = create_app(settings)
    process.prepare()
    app.lifecycle.drain_on_sigterm(app.service.close)
    globals()["app"] = app
    return app


_GUNICORNS_BOOT_ERROR = 3
"""Ends gunicorn's master, too; after any other status of a worker it starts the next one, without end."""


@contextlib.contextmanager
def exit_on_bad_settings(status: int = 2) -> Iterator[None]:
    """End the process with `status`, and every problem on standard error, when the settings cannot be used."""
    try:
        yield
    except SettingsError as problem:
        print(problem, file=sys.stderr)
        raise SystemExit(status) from None


def main(argv: list[str] | None = None) -> int:
    """Serve with waitress until SIGTERM or Ctrl-C (`python app.py`), and return the exit status."""
    options = _parse_options(argv)
    process.prepare()
    with exit_on_bad_settings():
        settings = load_settings({**os.environ, **_chosen(options)})
        require_writable_folders(settings)
        run = _check if options.check else _serve
        if not options.offline:
            return run(settings)
        return _run_with_toy(run, settings) if options.model else _run_offline(run, settings)


def _parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python app.py",
        description="Multi-Task LLM API: text, code and classification by Google Gemini over HTTP.",
        epilog="Settings come from the environment and from .env; .env.example lists them all.",
    )
    parser.add_argument(
        "--offline", action="store_true", help="serve canned answers from a local emulator, without a key"
    )
    parser.add_argument(
        "--model",
        choices=["smollm2"],
        help="with --offline: a small language model answers in place of canned answers (requirements-local.txt)",
    )
    parser.add_argument("--check", action="store_true", help="say in a line each what would work and what not, and end")
    parser.add_argument("--host", help="address to listen on, instead of HOST")
    parser.add_argument("--port", help="port to listen on, instead of PORT; 0 = a free one")
    parser.add_argument("--version", action="version", version=f"Multi-Task LLM API {__version__}")
    options = parser.parse_args(argv)
    if options.model and not options.offline:
        parser.error("--model goes with --offline; GEMINI_MODEL names Gemini's")
    return options


def _chosen(options: argparse.Namespace) -> dict[str, str]:
    """Return the settings that the command line gives."""
    given = {"HOST": options.host, "PORT": options.port}
    return {name: text for name, text in given.items() if text is not None}


def _run_offline(run: Callable[[Settings], int], settings: Settings) -> int:
    from mtllm.emulator.server import Emulator  # loaded only where it is asked for

    with Emulator() as emulator:
        return run(settings.offline(emulator.url))


def _check(settings: Settings) -> int:
    from mtllm.check import check

    service = wiring.build(settings)
    with contextlib.closing(service):
        return check(settings, service)


def _run_with_toy(run: Callable[[Settings], int], settings: Settings) -> int:
    from mtllm.emulator.local_answers import TOY_MODEL, ToyGemini
    from mtllm.emulator.local_model import LocalModel, NoLocalModelError
    from mtllm.emulator.offline import OfflineGemini
    from mtllm.emulator.server import Emulator

    try:
        model = LocalModel()
    except NoLocalModelError as problem:
        print(problem, file=sys.stderr)
        return 2
    gemini = OfflineGemini(voice=ToyGemini(model))
    with Emulator(answer=gemini) as emulator, contextlib.closing(model):
        return run(settings.offline(emulator.url, TOY_MODEL))


def _serve(settings: Settings) -> int:
    from mtllm.http.serving import CannotServeError, serve  # only `python app.py` brings its own server

    app = create_app(settings)
    app.lifecycle.drain_on_sigterm(app.service.close)
    try:
        serve(app)
    except CannotServeError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
