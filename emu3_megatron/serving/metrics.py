"""Metrics for Prometheus, by vLLM's names where they mean the same."""

import time

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """What is counted. Needs prometheus-client.

    Args:
        model: the name that every metric carries.
    """

    def __init__(self, model: str):
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        own, names = self.registry, ["model_name"]
        gauge = lambda name, text: Gauge(f"vllm:{name}", text, names, registry=own).labels(model)
        counter = lambda name, text: Counter(f"vllm:{name}", text, names, registry=own).labels(
            model
        )
        seconds = lambda name, text, buckets=_SECONDS: Histogram(
            f"vllm:{name}_seconds", text, names, registry=own, buckets=buckets
        ).labels(model)
        self.running = gauge("num_requests_running", "Requests that have rows of the KV pool.")
        self.waiting = gauge("num_requests_waiting", "Requests that wait for rows.")
        self.rows = gauge("kv_cache_usage_perc", "Share of the KV pool's rows in use, 0 to 1.")
        self.prompt = counter("prompt_tokens", "Tokens of prompts.")
        self.said = counter("generation_tokens", "Tokens of results, forced ones included.")
        self.queued = seconds("request_queue_time", "From arrival to the first step.")
        self.first = seconds("time_to_first_token", "From arrival to the first token.")
        self.between = seconds("inter_token_latency", "Between tokens of a request.", _BETWEEN)
        self.whole = seconds("e2e_request_latency", "From arrival to the end.")
        success = Counter(
            "vllm:request_success",
            "Requests that came to their end.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._success = lambda reason: success.labels(model, reason)
        answers = Counter(
            "emu3:http_responses", "Responses by status.", ["status"], registry=self.registry
        )
        self.answer = lambda status: answers.labels(str(status)).inc()
        pictures = Counter(
            "emu3:pictures", "Pictures by what was done.", ["done"], registry=self.registry
        )
        self.picture = lambda done: pictures.labels(done).inc()

    def observe(self, running: int, waiting: int, rows: float) -> None:
        """The state after a step."""
        self.running.set(running)
        self.waiting.set(waiting)
        self.rows.set(rows)

    def follow(self, prompt: int) -> "Timing":
        """A request has arrived, with so many tokens in its prompt."""
        self.prompt.inc(prompt)
        return Timing(self)

    def end(self, reason: str) -> None:
        if reason != "abort":
            self._success(reason).inc()

    def page(self) -> bytes:
        """What Prometheus reads."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class Timing:
    """The clock of a request."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._arrived = time.perf_counter()
        self._last: float | None = None

    def begin(self) -> None:
        self._metrics.queued.observe(time.perf_counter() - self._arrived)

    def say(self, tokens: int) -> None:
        """New tokens have come."""
        if not tokens:
            return
        now = time.perf_counter()
        if self._last is None:
            self._metrics.first.observe(now - self._arrived)
        else:
            self._metrics.between.observe((now - self._last) / tokens)
        self._last = now
        self._metrics.said.inc(tokens)

    def end(self, reason: str) -> None:
        self._metrics.whole.observe(time.perf_counter() - self._arrived)
        self._metrics.end(reason)
