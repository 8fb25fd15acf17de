"""The composition root: configuration -> policy -> one engine, one queue, one thread each -> events and statistics.

The main thread waits for signals and never sees a packet; a worker thread spends its life in C; the pump thread
carries events from the engines to the output. What ends a worker ends the daemon: with one queue of several gone,
part of the mail would hang for no reason that anybody could see.
"""
from __future__ import annotations

import logging
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from nfqguard.deploy.requirement import unmet
from nfqguard.engine import Classes, Engine, EngineError, Policy, Queue, QueueSettings, Settings
from nfqguard.nfqueue import BoundQueue, QueueError, kernel_queue
from nfqguard.notify import Notifier
from nfqguard.policy.compile import ClassSpec, compile_classes, compile_policy
from nfqguard.policy.load import Configuration
from nfqguard.report.event import Event
from nfqguard.report.output import Output

log = logging.getLogger(__name__)

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
PUMP_INTERVAL = 0.1
"""Seconds between two looks into the event rings: 8192 slots last for 80,000 events a second."""
STATUS_INTERVAL = 1.0
STOP_WAIT = 5.0
"""Seconds that a loop may take to return: it does so within one round."""


class DaemonError(RuntimeError):
    """Why the daemon cannot start or go on."""


class Worker:
    """One queue with its engine and the thread that drains it."""

    def __init__(self, number: int, configuration: Configuration, policy: Policy | Classes) -> None:
        """Bind queue `number` and take all memory. Raises QueueError or EngineError."""
        self.number = number
        self.failure: OSError | None = None
        with ExitStack() as undo:
            self._bound = BoundQueue(number)
            undo.callback(self._bound.close)
            self.engine = Engine(_settings(configuration), policy)
            undo.callback(self.engine.close)
            self.queue = Queue(self.engine, self._bound.fd, _queue_settings(number, configuration))
            undo.callback(self.queue.close)
            self._undo = undo.pop_all()
        self._thread = threading.Thread(target=self._run, name=f"queue-{number}", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Drain the queue from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the loop to end. What waits stays in the kernel's queue until `close()`."""
        self.queue.stop()

    def join(self) -> None:
        """Wait until the loop has ended. Raises DaemonError if it does not."""
        if self._thread.ident is not None:
            self._thread.join(STOP_WAIT)
        if self.alive:
            raise DaemonError(f"queue {self.number}: the loop did not return within {STOP_WAIT:g} seconds")

    def events(self) -> Iterator[Event]:
        """The events that wait, with the times of the wall clock."""
        while batch := self.engine.events():
            for event in batch:
                yield replace(event, time=self.queue.wall(event.time), started=self.queue.wall(event.started))

    def drain(self) -> Iterator[Event]:
        """End the flows; yields what waits in the ring and their records. After `join()` only."""
        while True:
            yield from self.events()
            self.engine.drain(self.queue.now())
            if not self.engine.counters()["flows"]:
                break
        yield from self.events()

    def close(self) -> None:
        """Give everything back; the loop must have stopped, for unbinding reads on its descriptor."""
        self._undo.close()

    def _run(self) -> None:
        try:
            self.queue.run()
        except OSError as error:
            self.failure = error


def run(configuration: Configuration, events: str | None = None) -> None:
    """Inspect what the deployment brings to the queues until SIGTERM or SIGINT; events go to the file `events` (`-`:
    standard output) or to the configuration's. Raises DaemonError, with nothing left bound, where that cannot be."""
    if problems := unmet(configuration):
        raise DaemonError("; ".join(map(str, problems)))
    file = events or configuration.events.file
    try:
        output = Output(file)
    except OSError as error:
        raise DaemonError(f"events cannot be written to {file}: {error.strerror}") from error
    with output, _signals_blocked():
        Daemon(configuration, output, Notifier()).run()


class Daemon:
    """All queues of a configuration, from binding to unbinding."""

    def __init__(self, configuration: Configuration, output: Output, notifier: Notifier) -> None:
        """Compile the policy and bind every queue of the deployment. Raises DaemonError with nothing left bound."""
        self._output = output
        self._notifier = notifier
        self._stopped = threading.Event()
        self._reopen = threading.Event()
        self._pump = threading.Thread(target=self._carry, name="events", daemon=True)
        self._workers: list[Worker] = []
        first = configuration.deployment.queue_first
        try:
            policy = _policy(configuration)
            for number in range(first, first + configuration.deployment.queue_count):
                self._workers.append(Worker(number, configuration, policy))
        except (QueueError, EngineError, ValueError, DaemonError) as error:
            self._close()
            raise DaemonError(str(error)) from error

    def run(self) -> None:
        """Inspect until SIGTERM or SIGINT, which must be blocked since before the queues were bound. Raises DaemonError
        when a queue fails; everything is unbound either way."""
        try:
            self._start()
            self._wait()
        finally:
            self._stop()
        failed = [str(worker.failure) for worker in self._workers if worker.failure]
        if failed:
            raise DaemonError("; ".join(failed))

    def _start(self) -> None:
        for worker in self._workers:
            worker.start()
        self._pump.start()
        self._notifier.ready()
        log.info("inspecting on %s", self._queues())
        if why := self._workers[0].queue.conntrack_error:
            log.warning("connection tracking cannot be asked about the packets that nfqguard sends itself (%s): where "
                        "addresses are translated, a reset or refusal may reach one end only. This needs CAP_NET_ADMIN "
                        "and a kernel with CONFIG_NF_CT_NETLINK", why)

    def _wait(self) -> None:
        """Until a signal ends us or a worker has died. SIGHUP opens the output anew, for logrotate."""
        while all(worker.alive for worker in self._workers):
            received = _next_signal(STATUS_INTERVAL)
            if received is None:
                self._notifier.status(self._status())
            elif received == signal.SIGHUP:
                self._reopen.set()
            else:
                log.info("stopping on %s", received.name)
                return

    def _stop(self) -> None:
        self._notifier.stopping()
        try:
            for worker in self._workers:
                worker.stop()
            for worker in self._workers:
                worker.join()
            self._stopped.set()
            if self._pump.ident is not None:
                self._pump.join()
            self._finish()
        finally:
            self._close()

    def _finish(self) -> None:
        """The records of all flows and what was counted, while the queues are still bound and the kernel's counters
        are there."""
        log.info("stopped; %s", self._status())
        for worker in self._workers:
            for event in worker.drain():
                self._output.write(event, worker.number)
            self._output.statistics(worker.number, worker.engine.counters(), kernel_queue(worker.number))

    def _close(self) -> None:
        for worker in self._workers:
            if not worker.alive:
                worker.close()

    def _carry(self) -> None:
        """The pump's life. Opening anew happens here, too: nobody else writes meanwhile."""
        while not self._stopped.wait(PUMP_INTERVAL):
            if self._reopen.is_set():
                self._reopen.clear()
                self._output.reopen()
            for worker in self._workers:
                self._write_events(worker)

    def _write_events(self, worker: Worker) -> None:
        for event in worker.events():
            self._output.write(event, worker.number)

    def _status(self) -> str:
        total: Counter[str] = Counter()
        for worker in self._workers:
            total.update(worker.engine.counters())
        return f"{self._queues()}: {total['flows']} flows, {total['packets']} packets, {total['dropped']} dropped"

    def _queues(self) -> str:
        numbers = [worker.number for worker in self._workers]
        return f"queue {numbers[0]}" if len(numbers) == 1 else f"queues {numbers[0]} to {numbers[-1]}"


def _policy(configuration: Configuration) -> Policy | Classes:
    """What the engines install. Raises DaemonError for an interface that is not there, ValueError, EngineError."""
    used = configuration.policies_in_use
    policies = {name: Policy(compile_policy(name, policy)) for name, policy in used.items()}
    otherwise = policies[configuration.policy]
    specs = compile_classes(configuration.classes, configuration.network)
    return Classes(specs, policies, otherwise, _indexes(specs)) if specs else otherwise


def _indexes(specs: Sequence[ClassSpec]) -> dict[str, int]:
    """The index of each interface that classes name, as it is now. Raises DaemonError where there is none."""
    found = {}
    for spec in specs:
        for name in spec.in_interfaces + spec.out_interfaces:
            try:
                found[name] = socket.if_nametoindex(name)
            except OSError as error:
                raise DaemonError(
                    f"the class '{spec.name}' names the interface {name}, which is not there: make it before nfqguard "
                    "starts, or correct the name") from error
    return found


def _settings(configuration: Configuration) -> Settings:
    values = configuration.engine.model_dump()
    binding = Settings.BINDINGS[configuration.engine.binding]
    return Settings.default(**{**values, "binding": binding, "offload": int(configuration.deployment.offload_mark > 0)})


def _queue_settings(number: int, configuration: Configuration) -> QueueSettings:
    deployment = configuration.deployment
    return QueueSettings(number, fail_open=deployment.on_overload == "accept", own_mark=deployment.own_mark,
                         offload_mark=deployment.offload_mark)


def _next_signal(timeout: float) -> signal.Signals | None:
    """One of SIGNALS, or None after `timeout` seconds. CPython's sigtimedwait() returns what happens to lie in memory
    when a SIGSTOP and SIGCONT have used the time up."""
    received = signal.sigtimedwait(SIGNALS, timeout)
    return signal.Signals(received.si_signo) if received and received.si_signo in SIGNALS else None


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """The main thread takes our signals by sigtimedwait(), and threads begun meanwhile inherit the mask: no handler
    ever runs in the middle of something."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
