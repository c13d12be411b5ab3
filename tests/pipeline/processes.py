"""Real Prometheus and Alertmanager on loopback, and a receiver for notifications.

Each is a context manager, keeps its data in the folder it is given, and ends what it started.
Their programs come from Debian; tests that use them are marked `needs("prometheus")` and
`needs("prometheus-alertmanager")`.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import yaml

from vllm_agent.demo.launch import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

ROOT: Final = Path(__file__).parents[2]
SHIPPED_CONFIG: Final = ROOT / "alerts" / "alertmanager.yml"

# Both are ready within a second on an idle machine; a loaded one may need much longer.
READY_TIMEOUT_SECONDS: Final = 30.0
# Prometheus writes its head to disk on SIGTERM.
STOP_TIMEOUT_SECONDS: Final = 10.0
REQUEST_TIMEOUT_SECONDS: Final = 10.0
# Neither program tells when it is ready, so it is asked this often.
POLL_SECONDS: Final = 0.05
# Another process may take the free port before the program binds it.
START_ATTEMPTS: Final = 3
LOG_LINES_SHOWN: Final = 20


class ProgramError(RuntimeError):
    """A program did not start; carries the end of its log."""


def wait_until(
    look: Callable[[], Any],
    what: str,
    timeout_seconds: float,
    look_seconds: float = POLL_SECONDS,
) -> Any:
    """Asks every `look_seconds` until the answer is true, and returns it.

    Raises:
        TimeoutError: it was not true within `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout_seconds} s")
        time.sleep(look_seconds)


class _Program:
    """One program with an HTTP server and `/-/ready`, from start to end."""

    name: str

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def log(self) -> str:
        path = self._directory / f"{self.name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._start()
            except ProgramError:
                self.stop()
                if attempt == START_ATTEMPTS or "address already in use" not in self.log:
                    raise
            else:
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the program and waits for its end; a second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def arguments(self) -> list[str]:
        """The command line for `self.address`; writes the files it names."""
        raise NotImplementedError

    def get(self, path: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """The JSON at a path of the program's API."""
        query = f"?{urllib.parse.urlencode(parameters, doseq=True)}" if parameters else ""
        return self._request(urllib.request.Request(f"{self.url}{path}{query}"))

    def post(self, path: str, body: Any) -> None:
        """Sends JSON to a path of the program's API."""
        self._request(
            urllib.request.Request(
                f"{self.url}{path}",
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
            )
        )

    def _start(self) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        with (self._directory / f"{self.name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                self.arguments(), cwd=self._directory, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            wait_until(self._is_ready, f"{self.name} is ready", READY_TIMEOUT_SECONDS)
        except TimeoutError as error:
            raise ProgramError(self._report(str(error))) from error

    def _is_ready(self) -> bool:
        assert self._process is not None
        status = self._process.poll()
        if status is not None:
            raise ProgramError(self._report(f"{self.name} ended with status {status}"))
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=REQUEST_TIMEOUT_SECONDS):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def _report(self, problem: str) -> str:
        tail = "\n".join(self.log.splitlines()[-LOG_LINES_SHOWN:])
        return f"{problem}; the end of its log:\n{tail}"

    def _request(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS) as response:
                body = response.read()
        except urllib.error.HTTPError as error:
            with error:
                detail = error.read().decode(errors="replace")
            raise AssertionError(f"{request.full_url}: {error.code} {detail}") from error
        return json.loads(body) if body else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One `host:port` to scrape, with an `instance` that says more than its address."""

    address: str
    job: str
    instance: str
    scrape_interval: str | None = None

    def scrape_config(self) -> dict[str, Any]:
        """The scrape job of this target alone; its interval is the global one unless told."""
        labels = {"job": self.job, "instance": self.instance}
        static = {"targets": [self.address], "labels": labels}
        config = {"job_name": f"{self.job} {self.instance}", "static_configs": [static]}
        return config | ({"scrape_interval": self.scrape_interval} if self.scrape_interval else {})


class Prometheus(_Program):
    """A Prometheus with the given scrape jobs and rules.

    `jobs` maps a job name to its `host:port` targets; `targets` are those that have an interval or
    an instance of their own. Intervals are Prometheus durations such as `200ms`. A folder with
    blocks in `storage` is served as it is. Whatever the intervals, the first scrape comes 5 s after
    the start: Prometheus applies discovered targets that often.
    """

    name = "prometheus"

    def __init__(
        self,
        directory: Path,
        *,
        scrape_interval: str = "1s",
        evaluation_interval: str = "1s",
        jobs: Mapping[str, Sequence[str]] | None = None,
        targets: Sequence[Target] = (),
        rule_files: Sequence[Path] = (),
        alertmanagers: Sequence[str] = (),
        storage: Path | None = None,
    ) -> None:
        super().__init__(directory)
        self._storage = storage or directory / "tsdb"
        self._config = {
            "global": {
                "scrape_interval": scrape_interval,
                "evaluation_interval": evaluation_interval,
            },
            "rule_files": [str(path.resolve()) for path in rule_files],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]},
            "scrape_configs": [
                *(
                    {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                    for job, addresses in (jobs or {}).items()
                ),
                *(target.scrape_config() for target in targets),
            ],
        }

    def arguments(self) -> list[str]:
        config = self._directory / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config), encoding="utf-8")
        return [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={self._storage}",
            f"--web.listen-address={self.address}",
        ]

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an instant query, now or at a unix time."""
        parameters = {"query": expr} if at is None else {"query": expr, "time": at}
        series: list[dict[str, Any]] = self.get("/api/v1/query", parameters)["data"]["result"]
        return series

    def query_range(
        self, expr: str, start: float, end: float, step_seconds: float
    ) -> list[dict[str, Any]]:
        """The series of a range query between two unix times."""
        parameters = {"query": expr, "start": start, "end": end, "step": step_seconds}
        answer = self.get("/api/v1/query_range", parameters)
        series: list[dict[str, Any]] = answer["data"]["result"]
        return series

    def wait_for(
        self, expr: str, timeout_seconds: float = 10.0, look_seconds: float = POLL_SECONDS
    ) -> list[dict[str, Any]]:
        """The series of an instant query, once there are any."""
        series: list[dict[str, Any]] = wait_until(
            lambda: self.query(expr), expr, timeout_seconds, look_seconds
        )
        return series

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are pending or firing."""
        alerts: list[dict[str, Any]] = self.get("/api/v1/alerts")["data"]["alerts"]
        return alerts


class Alertmanager(_Program):
    """A single Alertmanager with the given configuration file."""

    name = "prometheus-alertmanager"

    def __init__(self, directory: Path, config: Path) -> None:
        super().__init__(directory)
        self._config = config

    def arguments(self) -> list[str]:
        return [
            self.name,
            f"--config.file={self._config.resolve()}",
            f"--storage.path={self._directory / 'alertmanager'}",
            f"--web.listen-address={self.address}",
            "--cluster.listen-address=",
        ]

    def post_alerts(self, *labels: Mapping[str, str]) -> None:
        """Makes alerts with these labels fire, as Prometheus would."""
        self.post("/api/v2/alerts", [{"labels": dict(one), "annotations": {}} for one in labels])

    def alerts(self) -> list[dict[str, Any]]:
        """Every alert, silenced and inhibited ones included."""
        alerts: list[dict[str, Any]] = self.get("/api/v2/alerts")
        return alerts


@dataclass(frozen=True, slots=True)
class Delivery:
    """One notification: when it arrived (unix time), at which path, and its JSON."""

    arrived_at: float
    path: str
    payload: dict[str, Any]

    @property
    def alert_names(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.payload.get("alerts", [])}


class Webhook:
    """Collects what is posted to it, on a free port of loopback."""

    def __init__(self) -> None:
        self._deliveries: list[Delivery] = []
        self._arrival = threading.Condition()
        webhook = self

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook._deliver(Delivery(time.time(), self.path, json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing: what a test needs to show is in `deliveries`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        # The default of half a second is what each test would wait for at its end.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def deliveries(self) -> list[Delivery]:
        """All deliveries so far, oldest first."""
        with self._arrival:
            return list(self._deliveries)

    def wait_for(
        self, predicate: Callable[[Delivery], bool], timeout_seconds: float = 10.0
    ) -> Delivery:
        """The first delivery that matches, also one that has arrived already.

        Raises:
            TimeoutError: none came within `timeout_seconds`; says which ones did.
        """

        def first_match() -> Delivery | None:
            return next(filter(predicate, self._deliveries), None)

        with self._arrival:
            match = self._arrival.wait_for(first_match, timeout_seconds)
            if match is None:
                seen = [(one.path, sorted(one.alert_names)) for one in self._deliveries]
                raise TimeoutError(f"no such delivery within {timeout_seconds} s; came: {seen}")
            return match

    def _deliver(self, delivery: Delivery) -> None:
        with self._arrival:
            self._deliveries.append(delivery)
            self._arrival.notify_all()


def shipped_config_for(webhook: Webhook, directory: Path, *, group_wait: str = "0s") -> Path:
    """The project's alertmanager.yml with its receivers at `webhook`, told at once.

    The path of each receiver (`/page`, `/ticket`) stays, so a delivery tells who got it.
    """
    config = yaml.safe_load(SHIPPED_CONFIG.read_text(encoding="utf-8"))
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": group_wait, "group_interval": "1s"}
    for receiver in config["receivers"]:
        for hook in receiver["webhook_configs"]:
            hook["url"] = webhook.url + urllib.parse.urlsplit(hook["url"]).path
    path = directory / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path
