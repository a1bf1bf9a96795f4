"""The server of `python app.py`: waitress with limits that suit this service, and the banner it starts with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from waitress.server import create_server

from mtllm import process
from mtllm.billing.prices import Price
from mtllm.completions.chain import ModelStanding
from mtllm.domain.money import NANO, exact_usd
from mtllm.http.application import Api
from mtllm.http.body import BODY_LIMITS
from mtllm.settings import Settings
from mtllm.wiring import slots

CONNECTIONS = 1000
DESCRIPTORS = 4 * CONNECTIONS
"""Open files that a full house needs, with room for calls to Gemini, logs and ledger."""


LOOK_SECONDS = 3.0
"""How long the banner waits to learn which model answers."""


class CannotServeError(Exception):
    """The address cannot be listened on; the text says why."""


def serve(app: Api) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises CannotServeError."""
    settings, service = app.settings, app.service
    process.allow_descriptors(DESCRIPTORS)
    server = _listening(app, settings)
    try:
        app.open_under_waitress(server)
        if settings.google_api_key is None or settings.is_offline:
            print_banner(app, server)
        else:  # requests are answered while the banner waits to learn which model answers
            threading.Thread(target=_print_later, args=(app, server), name="banner", daemon=True).start()
        server.run()
    except KeyboardInterrupt:
        print("Stopping.")
    finally:
        server.close()
        service.close()


def _print_later(app: Api, server: Any) -> None:
    app.service.free_look.looked.wait(LOOK_SECONDS)
    print_banner(app, server)


def print_banner(app: Api, server: Any) -> None:
    """Print where the service is, what answers, and what is unprotected, as far as that is known by now."""
    service = app.service
    banner = Banner(
        app.settings,
        [_describe_model(app, standing) for standing in service.chain.standings()],
        service.chain.answering().model,
        is_open=service.keys.open,
        has_admin=service.keys.has_admin,
    )
    print("\n".join(banner.lines(_addresses(server))), flush=True)


def _listening(app: Api, settings: Settings) -> Any:
    try:
        return create_server(
            app,
            host=settings.host,
            port=settings.port,
            threads=settings.threads,
            connection_limit=CONNECTIONS,
            channel_timeout=30,
            channel_request_lookahead=1,  # a client that leaves is noticed while its stream is silent
            asyncore_use_poll=True,  # select() ends at 1,024 descriptors
            # in words of its own it refuses only what is far above our limit, whose answer is JSON
            max_request_body_size=BODY_LIMITS * settings.max_request_bytes,
            max_request_header_size=32 * 1024,
            clear_untrusted_proxy_headers=settings.trusted_proxies == 0,
            ident="mtllm",
        )
    except (OSError, ValueError) as problem:
        reason = (getattr(problem, "strerror", None) or str(problem)).rstrip(".")
        raise CannotServeError(f"Cannot listen on HOST={settings.host} PORT={settings.port}: {reason}.") from problem


def _addresses(server: Any) -> list[tuple[str, int]]:
    """Return where the server listens: a host name may stand for several addresses."""
    several = getattr(server, "effective_listen", None)
    return several or [(server.effective_host, server.effective_port)]


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """One model of the chain as the banner tells of it; `refusal` is empty where none is known."""

    name: str
    price: Price | None
    refusal: str


def _describe_model(app: Api, standing: ModelStanding) -> DescribedModel:
    price = app.service.recorder.price_of(standing.model, app.clock())
    return DescribedModel(standing.model, price, standing.refusal.sentence if standing.refusal else "")


@dataclass(frozen=True, slots=True)
class Banner:
    """Tells a person who starts the service where it is, what answers, at which price, and what is unprotected."""

    settings: Settings
    models: list[DescribedModel]
    """The chain, in its order."""
    answering: str
    """The model of it that answers."""
    is_open: bool
    """Whoever reaches the service may use it."""
    has_admin: bool

    def lines(self, addresses: list[tuple[str, int]]) -> Iterator[str]:
        """Yield the lines for a server that listens at `addresses`, pairs of host and port."""
        settings = self.settings
        urls = [f"http://{f'[{host}]' if ':' in host else host}:{port}" for host, port in addresses]
        yield f"Multi-Task LLM API    {'  '.join(urls)}"
        yield f"  model               {self._model()}"
        yield f"  answers             {_mode(settings)}"
        yield f"  ledger              {_ledger(settings)}"
        yield f"  logs                {settings.log_dir}"
        yield f"  threads             {settings.threads}; {slots(settings, settings.threads)} may wait for Gemini"
        yield f"  rate limits         {_limits(settings)}"
        yield f"  budgets             {_budgets(settings)}"
        yield f"  access              {self._access()}"
        yield f"  see                 {urls[0]}/dashboard  {urls[0]}/swagger/"

    def _model(self) -> str:
        """Return which model answers, at which price, and why not those before it."""
        names = [model.name for model in self.models]
        answers = self.models[names.index(self.answering)]
        told = [f"{answers.name}, {_price(answers.price)}"]
        return "; ".join(told + [f"{model.name} {model.refusal}" for model in self.models if model.refusal])

    def _access(self) -> str:
        who = "open to all who reach this address" if self.is_open else "by API key"
        return who if self.has_admin else f"{who}; export and cache deletion closed (no ADMIN_API_KEY)"


def _price(price: Price | None) -> str:
    return price.in_words if price else "no price known: costs show as 0 and are marked unpriced"


def _mode(settings: Settings) -> str:
    if settings.is_toy:
        return "of a toy, a small language model on this machine (--offline --model): often wrong, never Gemini's"
    if settings.is_offline:
        return "canned, from a local emulator (--offline); no language model is asked"
    if settings.google_api_key is None:
        return "none: no GOOGLE_API_KEY, so tasks get 503; set it, or start with --offline"
    return f"from {settings.gemini_api_endpoint or 'Google'}"


def _ledger(settings: Settings) -> str:
    where = "PostgreSQL" if settings.ledger_location.startswith("postgres") else settings.ledger_location
    return f"{where}, LEDGER_SYNC={settings.ledger_sync}"


def _limits(settings: Settings) -> str:
    limits = ", ".join(f"{limit.amount} in {limit.window_seconds} s" for limit in settings.rate_limits)
    return f"{limits} for each client" if limits else "none"


def _budgets(settings: Settings) -> str:
    limits = {"a day": settings.daily_budget_usd, "a month": settings.monthly_budget_usd}
    told = [f"${exact_usd(round(limit * NANO))} {period}" for period, limit in limits.items() if limit is not None]
    return f"{', '.join(told)} ({settings.budget_timezone})" if told else "none"
