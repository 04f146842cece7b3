"""Overview: is the service well, and if not, is it one route, the event loop or the process?"""

from __future__ import annotations

from dashboards.panels import (
    BLUE,
    DATASOURCE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Json,
    Panel,
    Query,
    Row,
    datasource_variable,
    layout,
    variable,
)

UID = "loopscope-overview"

_TARGET = 'job=~"$job", instance=~"$instance"'
_ROUTE = f'{_TARGET}, http_route=~"$route"'
_W = "[$__rate_interval]"

_DURATION = "http_server_request_duration_seconds"
_FIRST_BYTE = "loopscope_request_time_to_first_byte_seconds"
_LONGEST = "loopscope_request_longest_step_seconds"
_OUTCOMES = "loopscope_request_outcomes_total"
_FAILED = f'{_ROUTE}, outcome="error"'
_RUNNING = f'{_ROUTE}, phase="loop_run"'
_DELAY = "asyncio_eventloop_delay_seconds"
_LOOP_TIME = "asyncio_eventloop_time_seconds_total"
_BUSY = f'{_TARGET}, state="busy"'
_PHASE = "loopscope_request_phase_seconds_total"
_IN_TIME = f'{_ROUTE}, phase!="background"'
_WAITING = f'{_ROUTE}, phase="loop_wait"'
_AWAITED = "loopscope_await_seconds_total"
_FAN_OUT = "loopscope_request_tasks"
_MOST_AWAITS = 10
_BY_WORKER = "instance, worker"
_WORKER = "{{instance}} {{worker}}"


def _rate(metric: str, selector: str = _ROUTE, by: str = "") -> str:
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}{{{selector}}}{_W}))"


def _each(metric: str) -> str:
    """A gauge of every worker; of a process that is alone the label is empty."""
    return f"sum by ({_BY_WORKER}) ({metric}{{{_TARGET}}})"


def _quantile(quantile: float, metric: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile}, {_rate(f'{metric}_bucket', by=labels)})"


def _of_target(quantile: float, metric: str) -> str:
    return f"histogram_quantile({quantile}, {_rate(f'{metric}_bucket', _TARGET, 'le')})"


def _share_of_errors(by: str = "") -> str:
    errors = _rate(_OUTCOMES, _FAILED, by)
    everything = _rate(_OUTCOMES, by=by)
    return f"({errors} or 0 * {everything}) / {everything}"


_OUTCOME_COLOURS = {
    "ok": GREEN,
    "error": RED,
    "client_disconnected_before_response": YELLOW,
    "client_disconnected_mid_stream": ORANGE,
    "cancelled": PURPLE,
}

HEADLINE = Row(
    "At a glance",
    (
        Panel(
            "Requests per second",
            "All requests of the chosen routes, however they ended.",
            (Query(_rate(_OUTCOMES)),),
            "reqps", kind="stat", width=4, height=4,
        ),
        Panel(
            "Errors",
            "Share of requests that ended in a 5xx, an exception or an unfinished response. "
            "Clients that left do not count. Look below for the route.",
            (Query(_share_of_errors()),),
            "percentunit", kind="stat", width=4, height=4,
            thresholds=((0.01, YELLOW), (0.05, RED)),
        ),
        Panel(
            "p95 to the last byte",
            "95 of 100 requests were faster, from the server calling the application to the last "
            "body byte.",
            (Query(_quantile(0.95, _DURATION)),),
            "s", kind="stat", width=4, height=4,
        ),
        Panel(
            "p99 to the last byte",
            "99 of 100 requests were faster. Far above p95 with a busy loop: look at who holds it.",
            (Query(_quantile(0.99, _DURATION)),),
            "s", kind="stat", width=4, height=4,
        ),
        Panel(
            "In flight",
            "Requests being served right now. Growing while the rate does not: something is slow.",
            (Query(f"sum(http_server_active_requests{{{_TARGET}}})"),),
            "short", kind="stat", width=4, height=4,
        ),
        Panel(
            "Event loop taken by requests",
            "Share of one event loop that requests' own coroutines took, per process on average. "
            "Towards 1 everything waits for everything: find the route that takes most.",
            (Query(
                f"{_rate(_PHASE, _RUNNING)} "
                f"/ count(process_start_time_seconds{{{_TARGET}}})"
            ),),
            "percentunit", kind="stat", width=4, height=4,
            thresholds=((0.5, YELLOW), (0.8, RED)),
        ),
    ),
)  # fmt: skip

REQUESTS = Row(
    "Requests",
    (
        Panel(
            "Rate by route",
            "Requests per second by route template. _UNMATCHED is paths no route knows.",
            (Query(_rate(_OUTCOMES, by="http_route"), "{{http_route}}"),),
            "reqps", stacked=True,
        ),
        Panel(
            "Errors by route",
            "Failed requests per second by route. Zero everywhere is what you want to see.",
            (Query(
                _rate(_OUTCOMES, _FAILED, "http_route"), "{{http_route}}"
            ),),
            "reqps", stacked=True,
        ),
        Panel(
            "How requests ended",
            "Clients that leave early are often clients that waited too long: compare with the "
            "durations.",
            (Query(_rate(_OUTCOMES, by="outcome"), "{{outcome}}"),),
            "reqps", stacked=True, colours=_OUTCOME_COLOURS,
        ),
        Panel(
            "Durations",
            "How many requests took how long, to the last byte. Two bands mean two populations: "
            "cached and not, fast route and slow route.",
            (Query(_rate(f"{_DURATION}_bucket", by="le"), "{{le}}", format="heatmap"),),
            "s", kind="heatmap", width=12,
        ),
        Panel(
            "Duration quantiles",
            "To the last byte, over the chosen routes. Points are exemplars: traces of single "
            "requests, where tracing is on.",
            tuple(
                Query(_quantile(quantile, _DURATION), f"p{quantile * 100:.0f}", exemplars=True)
                for quantile in (0.5, 0.95, 0.99)
            ),
            "s", width=12, colours={"p50": GREEN, "p95": ORANGE, "p99": RED},
        ),
        Panel(
            "p95 by route",
            "Which route is slow, to the last byte.",
            (Query(_quantile(0.95, _DURATION, "http_route"), "{{http_route}}", exemplars=True),),
            "s",
        ),
        Panel(
            "p95 time to first byte by route",
            "When the body began. Far below the duration: a stream, or a client that reads slowly.",
            (Query(_quantile(0.95, _FIRST_BYTE, "http_route"), "{{http_route}}"),),
            "s",
        ),
        Panel(
            "In flight",
            "Serving: the response is not complete. Background: it is, but the task still runs.",
            (
                Query(f"sum(http_server_active_requests{{{_TARGET}}})", "serving"),
                Query(f"sum(loopscope_background_requests{{{_TARGET}}})", "background"),
            ),
            "short", stacked=True, colours={"serving": BLUE, "background": PURPLE},
        ),
    ),
)  # fmt: skip

_PHASE_COLOURS = {
    "loop_run": ORANGE,
    "loop_wait": RED,
    "pool_wait": PURPLE,
    "thread_wait": YELLOW,
    "thread_run": "semi-dark-green",
    "client_upload": "light-blue",
    "client_download": "light-green",
    "await_other": BLUE,
}

TIME = Row(
    "Where requests spend their time",
    (
        Panel(
            "Time by phase",
            "Seconds per second that requests of the chosen routes spend in each phase; all of it "
            "together is how many are being served. loop_run: their own code. loop_wait: the loop "
            "was busy with others. thread_wait: no thread was free. await_other: databases, "
            "upstreams, sleeps; the awaits below say which.",
            (Query(_rate(_PHASE, _IN_TIME, "phase"), "{{phase}}"),),
            "s", width=12, stacked=True, colours=_PHASE_COLOURS,
        ),
        Panel(
            "Share of phases by route",
            "What a request of each route is made of. Much loop_run: move work off the loop. Much "
            "loop_wait: somebody else's work, see the stalls. Much await_other: look at what it "
            "awaits.",
            (Query(
                f"{_rate(_PHASE, _IN_TIME, 'http_route, phase')} / on (http_route) group_left () "
                f"{_rate(_PHASE, _IN_TIME, 'http_route')}",
                "{{http_route}} {{phase}}",
            ),),
            "percentunit", width=12, maximum=1.0,
        ),
        Panel(
            "Longest awaits, by line",
            "Seconds per second that requests and their tasks await, by the line of your code and "
            "what it calls; waits of 1 ms and more. Tasks of a request wait at one time and each "
            "counts. Begin with the tallest: a query to speed up, an upstream to cache.",
            (Query(
                f"topk({_MOST_AWAITS}, {_rate(_AWAITED, by='site, callee')})",
                "{{site}} {{callee}}",
            ),),
            "s", width=12,
        ),
        Panel(
            "To be saved by gathering, at most",
            "Seconds per second that requests would be shorter, had they awaited at one time what "
            "in this function always comes one after the other. An upper bound: look whether one "
            "needs the other's result; if not, asyncio.gather or a TaskGroup.",
            (Query(
                _rate("loopscope_sequential_await_seconds_total", by="http_route, location"),
                "{{location}} {{http_route}}",
            ),),
            "s", width=12, stacked=True,
        ),
        Panel(
            "Waiting for the loop, by route",
            "Seconds per second that requests were ready to run while the event loop ran something "
            "else. These routes are not to blame: whoever holds the loop is, see below. After "
            "stalls it is partly an upper bound, drawn as such.",
            (
                Query(
                    _rate(_PHASE, _WAITING, "http_route"), "{{http_route}}"
                ),
                Query(  # nothing of it is a bound where there is no such series
                    f"{_rate('loopscope_request_loop_wait_estimated_seconds_total')} "
                    f"or 0 * {_rate(_PHASE, _WAITING)}",
                    "of this, upper bound",
                ),
            ),
            "s",
        ),
        Panel(
            "Waiting for a thread, by route",
            "Seconds per second that work for threads (plain def endpoints, to_thread) was queued. "
            "Above zero the limiter or executor is exhausted: shorten what runs there, or raise "
            "anyio's total_tokens (40 by default).",
            (Query(
                _rate(_PHASE, f'{_ROUTE}, phase="thread_wait"', "http_route"), "{{http_route}}"
            ),),
            "s",
        ),
        Panel(
            "Fan-out (p99)",
            "Tasks made for one request, of requests that make any. Growing with the data means a "
            "gather without a bound: put a semaphore around it, or ask once for all.",
            (Query(_quantile(0.99, _FAN_OUT, "http_route"), "{{http_route}}"),),
            "short",
        ),
        Panel(
            "Tasks at one time, per request",
            "How many of its tasks a request has going on average, over its whole duration. A "
            "fan-out far above this runs one after the other all the same: a semaphore or a small "
            "pool holds it up, or each task holds the loop.",
            (Query(
                f"{_rate('loopscope_request_task_seconds_total', by='http_route')} "
                f"/ ({_rate(_PHASE, _IN_TIME, 'http_route')} > 0)",
                "{{http_route}}",
            ),),
            "short",
        ),
        Panel(
            "Tasks outliving their request",
            "Tasks per second still running when the request that made them was over. Their errors "
            "are nobody's and a shutdown loses them: await them, or use a queue or a background "
            "task.",
            (Query(
                _rate("loopscope_request_tasks_outliving_total", by="http_route"),
                "{{http_route}}",
            ),),
            "ops",
        ),
        Panel(
            "Tasks created",
            "Tasks per second made on the loops that serve requests, whoever made them. Far above "
            "the request rate: compare with the fan-out; each task costs loop time.",
            (Query(_rate("asyncio_tasks_created_total", _TARGET, "instance"), "{{instance}}"),),
            "ops",
        ),
    ),
)  # fmt: skip

LOOP = Row(
    "Event loop",
    (
        Panel(
            "Loop time by route",
            "Seconds of event loop per second that each route's own coroutine steps took. The "
            "tallest is where moving work off the loop helps everybody.",
            (Query(
                _rate(_PHASE, _RUNNING, "http_route"), "{{http_route}}"
            ),),
            "percentunit", width=12, stacked=True,
        ),
        Panel(
            "Longest hold of the loop by route (p99)",
            "How long single steps kept everybody else waiting. Above some 50 ms look for a "
            "blocking call or CPU work in that route.",
            (Query(_quantile(0.99, _LONGEST, "http_route"), "{{http_route}}"),),
            "s", width=12,
        ),
    ),
)  # fmt: skip

STALLS = Row(
    "Stalls of the event loop",
    (
        Panel(
            "Loop delay",
            "How late the loop ran what was due: what a request arriving at random had to wait. "
            "p99 above some 50 ms: look at what holds the loop, to the right.",
            tuple(
                Query(_of_target(quantile, _DELAY), f"p{quantile * 100:g}")
                for quantile in (0.5, 0.99, 0.999)
            ),
            "s", colours={"p50": GREEN, "p99": ORANGE, "p99.9": RED},
        ),
        Panel(
            "Loop utilisation",
            "Share of time the event loops of all workers were busy. Above 0.8 everything queues: "
            "more workers, or less work on the loop.",
            (Query(
                f"{_rate(_LOOP_TIME, _BUSY, 'instance')} "
                f"/ {_rate(_LOOP_TIME, _TARGET, 'instance')}",
                "{{instance}}",
            ),),
            "percentunit", maximum=1.0,
        ),
        Panel(
            "Held right now",
            "For how long a worker's loop has been held by now. A line that climbs is a loop that "
            "hangs: /api/stalls says where. One whose worker cannot speak either is seen from "
            "outside, where there is a sentinel.",
            (Query(_each("asyncio_eventloop_stall_in_progress_seconds"), _WORKER),),
            "s",
        ),
        Panel(
            "Time held, by line",
            "Seconds per second the loop was held in stalls, by file and function. Empty where no "
            "line is to blame: see the cause. Mend the tallest first.",
            (Query(
                _rate("asyncio_eventloop_stall_seconds_total", _TARGET, "location"),
                "{{location}}",
            ),),
            "percentunit", width=12, stacked=True,
        ),
        Panel(
            "Time held, by cause",
            "blocking_call and lock: await something else, or use a thread. cpu: a process. gc: "
            "gc.freeze(). starved: more CPU. gil_contention: another thread; /api/stalls names it.",
            (Query(
                _rate("asyncio_eventloop_stall_seconds_total", _TARGET, "cause"), "{{cause}}"
            ),),
            "percentunit", width=12, stacked=True,
        ),
        Panel(
            "Stalls by route that held the loop",
            "Stalls per second. No route: a background task, a callback, or nobody's fault.",
            (Query(
                _rate("asyncio_eventloop_stalls_total", _TARGET, "http_route"), "{{http_route}}"
            ),),
            "ops",
        ),
        Panel(
            "Request-seconds lost, by victim",
            "How long requests waited while others held the loop, by their own route; an upper "
            "bound. These routes are not slow: they were kept waiting.",
            (Query(
                _rate("asyncio_eventloop_stall_victim_seconds_total", by="http_route"),
                "{{http_route}}",
            ),),
            "s",
        ),
        Panel(
            "Tasks alive",
            "By coroutine. One that only grows is never awaited or never ends.",
            (Query(
                f"sum by (coroutine) (asyncio_tasks{{{_TARGET}}})", "{{coroutine}}"
            ),),
            "short", stacked=True,
        ),
    ),
)  # fmt: skip

_POOL = "{{pool}}"
_POOL_WAIT = "loopscope_pool_wait_seconds"
_MOST_SITES = 10
_POOL_FAILED = ("timeouts", "rejected", "cancelled")

POOLS = Row(
    "Pools",
    (
        Panel(
            "In use of capacity",
            "At 1 whoever comes next has to wait. Near 1 all the time: a larger pool, or shorter "
            "uses; see which route holds it.",
            (Query(
                f"sum by (pool) (loopscope_pool_in_use{{{_TARGET}}}) "
                f"/ sum by (pool) (loopscope_pool_capacity{{{_TARGET}}})",
                _POOL,
            ),),
            "percentunit", maximum=1.0,
        ),
        Panel(
            "Waiting",
            "How many wait right now. Above zero for longer than a moment: the pool is too small "
            "for how long each use takes.",
            (Query(f"sum by (pool) (loopscope_pool_pending{{{_TARGET}}})", _POOL),),
            "short",
        ),
        Panel(
            "Longest wait and use right now",
            "What has not ended is in no histogram. A use that only grows older is a leak, or a "
            "request that hangs with a connection in its hand.",
            (
                Query(
                    f"max by (pool) (loopscope_pool_oldest_wait_seconds{{{_TARGET}}})",
                    f"wait {_POOL}",
                ),
                Query(
                    f"max by (pool) (loopscope_pool_oldest_use_seconds{{{_TARGET}}})",
                    f"use {_POOL}",
                ),
            ),
            "s",
        ),
        Panel(
            "Waits (p95)",
            "From asking to having; time to make a connection included.",
            (Query(
                f"histogram_quantile(0.95, {_rate(f'{_POOL_WAIT}_bucket', _TARGET, 'le, pool')})",
                _POOL,
            ),),
            "s",
        ),
        Panel(
            "Who holds, by route",
            "Connections in use on average, by the route that uses them: the tallest is where a "
            "shorter use helps most.",
            (Query(
                _rate("loopscope_pool_route_use_seconds_total", by="pool, http_route"),
                "{{http_route}}",
            ),),
            "short", stacked=True,
        ),
        Panel(
            "Who waits, by route",
            "Requests waiting on average, by their route.",
            (Query(
                _rate("loopscope_pool_route_wait_seconds_total", by="pool, http_route"),
                "{{http_route}}",
            ),),
            "short", stacked=True,
        ),
        Panel(
            "Did not get one",
            "timeouts: gave up waiting. rejected: turned away, or an error. cancelled: somebody "
            "else gave up, often the client.",
            tuple(
                Query(_rate(f"loopscope_pool_{each}_total", _TARGET), each)
                for each in _POOL_FAILED
            ),
            "ops", width=12, stacked=True,
        ),
        Panel(
            "Not given back",
            "request_ended: held by a request that is over. held_too_long: for longer than "
            "leak_after allows. The line that took it is in the log and at /api/pools.",
            (Query(
                f"sum by (pool, reason) (loopscope_pool_leaked{{{_TARGET}}})",
                f"{_POOL} {{{{reason}}}}",
            ),),
            "short", width=12,
        ),
        Panel(
            "Connections made",
            "Per second. Many while the pool is not full: connections do not last, or each request "
            "makes its own.",
            (Query(
                _rate("loopscope_pool_create_seconds_count", _TARGET, "pool"), _POOL
            ),),
            "ops", width=12,
        ),
        Panel(
            "Connections made, by line",
            "Per second, the lines of the service's code that had most of them made. As many as "
            "there are requests: that line should use a pool, or keep its client.",
            (Query(
                f"topk({_MOST_SITES}, {_rate('loopscope_pool_creations_total', by='site')})",
                "{{site}}",
            ),),
            "ops", width=12,
        ),
    ),
)  # fmt: skip

STREAMS = Row(
    "WebSockets and streams",
    (
        Panel(
            "Open WebSockets",
            "Sessions open now, by route.",
            (Query(
                f"sum by (http_route) (loopscope_websocket_active{{{_ROUTE}}})", "{{http_route}}"
            ),),
            "short",
        ),
        Panel(
            "WebSocket messages",
            "Messages per second of sessions that have ended, by direction.",
            (Query(_rate("loopscope_websocket_messages_total", by="direction"), "{{direction}}"),),
            "ops",
        ),
        Panel(
            "Streamed chunks by route",
            "Body chunks per second of streamed responses.",
            (Query(_rate("loopscope_response_chunks_total", by="http_route"), "{{http_route}}"),),
            "ops",
        ),
    ),
)  # fmt: skip

_PAUSES = "loopscope_gc_pause_seconds"

PROCESS = Row(
    "Process",
    (
        Panel(
            "CPU",
            "Cores in use. One process of Python uses little more than one.",
            (Query(f"rate(process_cpu_seconds_total{{{_TARGET}}}{_W})", "{{instance}}"),),
            "short",
        ),
        Panel(
            "Memory",
            "Resident memory. Growing for days without coming down is a leak.",
            (Query(_each("process_resident_memory_bytes"), _WORKER),),
            "bytes",
        ),
        Panel(
            "File descriptors",
            "Open descriptors against their limit; at the limit nothing connects any more.",
            (
                Query(_each("process_open_fds"), f"open {_WORKER}"),
                Query(_each("process_max_fds"), f"limit {_WORKER}"),
            ),
            "short",
        ),
        Panel(
            "Threads",
            "A steady climb is a leak; a plateau at 40 more than at rest is anyio's limiter.",
            (Query(_each("process_threads"), _WORKER),),
            "short",
        ),
        Panel(
            "Context switches",
            "Involuntary ones mean the process was taken off a CPU it wanted to keep.",
            (Query(
                _rate(
                    "process_context_switches_total", _TARGET, "process_context_switch_type"
                ),
                "{{process_context_switch_type}}",
            ),),
            "ops",
        ),
        Panel(
            "Garbage collection",
            "Share of time the process stood still for the collector, by generation. Generation 2 "
            "above a percent: freeze what lives for ever at start-up.",
            (Query(
                _rate(f"{_PAUSES}_sum", _TARGET, "cpython_gc_generation"),
                "generation {{cpython_gc_generation}}",
            ),),
            "percentunit", stacked=True,
        ),
        Panel(
            "CPU throttling",
            "Time the container's CPU quota kept the process off the CPUs. Anything above zero "
            "delays every request; raise the quota before looking at code.",
            (Query(
                f"rate(loopscope_cgroup_cpu_throttled_seconds_total{{{_TARGET}}}{_W})",
                "{{instance}}",
            ),),
            "s",
        ),
        Panel(
            "What loopscope costs",
            "Seconds per second loopscope itself took, by part (requests is estimated).",
            (Query(
                _rate("loopscope_agent_overhead_seconds_total", _TARGET, "part"), "{{part}}"
            ),),
            "percentunit", stacked=True,
        ),
        Panel(
            "loopscope's own trouble",
            "Observations folded because the series budget was spent, per second. Above zero: "
            "raise LOOPSCOPE_MAX_SERIES or find what makes labels.",
            (Query(
                f"sum(rate(loopscope_agent_series_folded_total{{{_TARGET}}}{_W}))", "folded"
            ),),
            "ops",
        ),
    ),
)  # fmt: skip

_LOOK_COLOURS = {
    "seen": GREEN,
    "late": BLUE,
    "refused": RED,
    "failed": ORANGE,
    "limited": YELLOW,
}
_OUTSIDE = "loopscope_worker"
_WAITS = f"{_OUTSIDE}_run_queue_seconds_total"
_THROTTLED = f"{_OUTSIDE}_cgroup_cpu_throttled_seconds_total"

WORKERS = Row(
    "Workers",
    (
        Panel(
            "Alive",
            "Workers that share their figures. Fewer than there should be: one has died and was "
            "not replaced.",
            (Query(f"sum by (instance) (loopscope_workers{{{_TARGET}}})", "{{instance}}"),),
            "short",
        ),
        Panel(
            "Starts and ends",
            "A minute. Nothing outside of deployments is what you want to see. killed: it could "
            "not end in good order, and took with it what it had not written down.",
            (
                Query(f"60 * {_rate(f'{_OUTSIDE}_starts_total', _TARGET)}", "started"),
                Query(f"60 * {_rate(f'{_OUTSIDE}_ends_total', _TARGET, 'how')}", "{{how}}"),
            ),
            "cpm",
        ),
        Panel(
            "Exit status",
            "Ends a minute that a sentinel saw (Linux 6.15). SIGKILL: out of memory, or a server "
            "that had no patience. SIGABRT: gunicorn's timeout, so it hung. SIGSEGV: a crash in C.",
            (Query(f"60 * {_rate(f'{_OUTSIDE}_exits_total', _TARGET, 'status')}", "{{status}}"),),
            "cpm",
        ),
        Panel(
            "CPU by worker",
            "Cores in use by each worker, seen from outside: it goes on where a worker hangs. At "
            "1 it computes; hanging at 0 it waits in a call that blocks.",
            (Query(_rate(f"{_OUTSIDE}_cpu_seconds_total", _TARGET, _BY_WORKER), _WORKER),),
            "short",
        ),
        Panel(
            "Memory by worker",
            "unique: what would be free if the worker ended. resident: with what it shares. "
            "Growing in one worker only: look at what that one does.",
            (
                Query(_each(f"{_OUTSIDE}_resident_memory_bytes"), f"resident {_WORKER}"),
                Query(_each(f"{_OUTSIDE}_unique_memory_bytes"), f"unique {_WORKER}"),
            ),
            "bytes",
        ),
        Panel(
            "Descriptors of their limit",
            "At 1 the worker accepts nobody and connects to nothing any more.",
            (Query(
                f"{_each(f'{_OUTSIDE}_open_fds')} / {_each(f'{_OUTSIDE}_max_fds')}", _WORKER
            ),),
            "percentunit", maximum=1.0,
        ),
        Panel(
            "Waiting for a CPU",
            "Share of time a worker's main thread was ready to run and had no CPU. Above some "
            "percent there are more workers than CPUs, or neighbours: no line of code is to blame.",
            (Query(_rate(_WAITS, _TARGET, _BY_WORKER), _WORKER),),
            "percentunit",
        ),
        Panel(
            "CPU throttling by worker",
            "Time the CPU quota of its control group kept a worker off the CPUs. Workers of one "
            "container share the quota, and the figure: do not add it up.",
            (Query(_rate(_THROTTLED, _TARGET, _BY_WORKER), _WORKER),),
            "s",
        ),
        Panel(
            "Looks from outside",
            "A minute, into workers that did not come round. late: it was over by then. refused: "
            "the kernel does not let the sentinel look, and its log says what to grant. limited: "
            "too many at once.",
            (Query(
                f"60 * {_rate('loopscope_sentinel_looks_total', _TARGET, 'outcome')}",
                "{{outcome}}",
            ),),
            "cpm", stacked=True, colours=_LOOK_COLOURS,
        ),
        Panel(
            "CPU of the sentinel",
            "Cores in use. Looks and scrapes cost it most.",
            (Query(
                _rate("loopscope_sentinel_cpu_seconds_total", _TARGET, "instance"),
                "{{instance}}",
            ),),
            "percentunit", width=12,
        ),
        Panel(
            "Memory of the sentinel",
            "Resident. It watches all workers of an instance, however many there are.",
            (Query(
                f"sum by (instance) (loopscope_sentinel_resident_memory_bytes{{{_TARGET}}})",
                "{{instance}}",
            ),),
            "bytes", width=12,
        ),
    ),
)  # fmt: skip

ROWS = (HEADLINE, REQUESTS, TIME, LOOP, STALLS, POOLS, STREAMS, WORKERS, PROCESS)


def board() -> Json:
    """The board, ready for Grafana's import."""
    requests = f"{_DURATION}_count"
    return {
        "uid": UID,
        "title": "loopscope / Overview",
        "description": "Is the service well? If not: one route, the event loop, or the process?",
        "tags": ["loopscope", "asyncio"],
        "schemaVersion": 42,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_restarts()]},
        "templating": {
            "list": [
                datasource_variable(),
                variable("job", "Job", f"label_values({requests}, job)"),
                variable(
                    "instance", "Instance", f'label_values({requests}{{job=~"$job"}}, instance)'
                ),
                variable("route", "Route", f"label_values({requests}{{{_TARGET}}}, http_route)"),
            ]
        },
        "panels": layout(ROWS),
    }


def _restarts() -> Json:
    """A mark wherever a process began."""
    return {
        "name": "Restarts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": ORANGE,
        "expr": f"changes(process_start_time_seconds{{{_TARGET}}}{_W}) > 0",
        "titleFormat": "restart",
        "textFormat": "{{instance}}",
    }
