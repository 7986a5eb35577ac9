"""The queue of jobs, in SQLite: what was accepted stays until it is drawn, whatever happens to the process."""

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

WAITING = ("queued", "paused")
ENDED = ("done", "failed", "cancelled")
MAX_TRIES = 3  # starts of one job, before it counts as what kills the process
SCHEMA = """
create table if not exists jobs (
    number integer primary key autoincrement, id text unique not null, task text not null, model text not null,
    request text not null, images text not null, grid text not null, prompt text not null, dialect text not null,
    state text not null, priority integer not null, place real not null, created real not null, started real,
    finished real, tries integer not null default 0, error text, pictures text not null default '[]'
);
create index if not exists waiting on jobs (state, priority desc, place);
create table if not exists kept (name text primary key, value text not null);
"""
ORDER = "priority desc, place, number"


@dataclass(frozen=True)
class Job:
    """A picture, or a batch of them, to draw. Times are unix seconds."""

    id: str
    task: str
    model: str
    request: dict[str, Any]  # validated, all fields
    images: dict[str, str]  # role -> name of its file in the job's folder
    grid: dict[str, list[Any]]
    dialect: str
    state: str
    priority: int
    created: float
    started: float | None
    finished: float | None
    tries: int
    error: str | None
    pictures: list[dict[str, Any]]
    number: int


COLUMNS = ", ".join(field.name for field in fields(Job))
WRITTEN_AS_JSON = ("request", "images", "grid", "pictures")


def job_of(row: Sequence[Any]) -> Job:
    values = dict(zip((field.name for field in fields(Job)), row, strict=True))
    return Job(**values | {name: json.loads(values[name]) for name in WRITTEN_AS_JSON})


class Queue:
    """The jobs of a file. One process at a time uses it, in one thread."""

    def __init__(self, path: Path):
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("pragma journal_mode=wal")
        self.db.execute(
            "pragma synchronous=normal"
        )  # enough for a process that dies; a power cut may undo the last ones
        self.db.executescript(SCHEMA)

    def close(self) -> None:
        self.db.close()

    def add(
        self,
        id: str,
        task: str,
        model: str,
        request: dict[str, Any],
        images: dict[str, str],
        grid: dict[str, list[Any]],
        dialect: str,
        priority: int = 0,
    ) -> Job:
        """A new job, behind all of its priority."""
        prompt = request.get("prompt", request.get("name", ""))
        prompts = prompt if isinstance(prompt, str) else "\n".join(prompt)
        texts = [json.dumps(part, ensure_ascii=False) for part in (request, images, grid)]
        now = time.time()
        return self.one(
            "insert into jobs (id, task, model, request, images, grid, prompt, dialect, state, priority, place, created) "
            f"values (?, ?, ?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?) returning {COLUMNS}",
            (id, task, model, *texts, prompts, dialect, priority, now, now),
        )

    def one(self, query: str, values: Sequence[Any]) -> Job:
        """The row that a statement returns. Raises KeyError where there is none."""
        rows = self.db.execute(query, values).fetchall()
        if not rows:
            raise KeyError(values)
        return job_of(rows[0])

    def get(self, id: str) -> Job:
        """A job. Raises KeyError."""
        return self.one(f"select {COLUMNS} from jobs where id = ?", (id,))

    def claim(self) -> Job | None:
        """The next job, now running; None where nothing waits."""
        try:
            return self.one(
                "update jobs set state = 'running', started = ?, tries = tries + 1 where number = "
                f"(select number from jobs where state = 'queued' order by {ORDER} limit 1) returning {COLUMNS}",
                (time.time(),),
            )
        except KeyError:
            return None

    def end(self, id: str, state: str, pictures: Sequence[Any] = (), error: str | None = None) -> Job:
        """A job that is done, failed or cancelled."""
        return self.one(
            "update jobs set state = ?, finished = ?, pictures = ?, error = ? where id = ? "
            f"returning {COLUMNS}",
            (state, time.time(), json.dumps(list(pictures), ensure_ascii=False), error, id),
        )

    def put_back(self, id: str, counted: bool = True) -> Job:
        """A running job that was interrupted: it waits again at its place, or has failed where it was started too often.

        counted: whether the job may have been what ended its process.
        """
        job = self.get(id)
        if counted and job.tries >= MAX_TRIES:
            return self.end(
                id, "failed", error=f"the drawing process ended {MAX_TRIES} times while it drew this"
            )
        tries = job.tries if counted else job.tries - 1
        return self.one(
            f"update jobs set state = 'queued', started = null, tries = ? where id = ? returning {COLUMNS}",
            (tries, id),
        )

    def recover(self) -> list[Job]:
        """Put back what was running when the server before this one ended; jobs can't end it."""
        rows = self.db.execute("select id from jobs where state = 'running'").fetchall()
        return [self.put_back(id, counted=False) for (id,) in rows]

    def change(self, id: str, **values: Any) -> Job:
        """Set a waiting job's state or priority. Raises KeyError where it does not wait."""
        names = ", ".join(f"{name} = ?" for name in values)
        return self.one(
            f"update jobs set {names} where id = ? and state in ('queued', 'paused') returning {COLUMNS}",
            (*values.values(), id),
        )

    def move(self, id: str, position: int) -> Job:
        """Put a waiting job at a position in the queue, counted from 0. Raises KeyError where it does not wait."""
        rest = [row for row in self.order() if row[0] != id]
        before = (
            rest[position - 1] if 0 < position <= len(rest) else rest[-1] if position > 0 and rest else None
        )
        after = rest[position] if 0 <= position < len(rest) else None
        priority = (after or before or (None, 0, 0.0))[1]
        low = before[2] if before and before[1] == priority else None
        high = after[2] if after and after[1] == priority else None
        if low is None:
            place = time.time() if high is None else high - 1
        else:
            place = low + 1 if high is None else (low + high) / 2
        return self.change(id, priority=priority, place=place)

    def order(self) -> list[tuple[str, int, float]]:
        """Id, priority and place of all that wait, in their order."""
        return self.db.execute(
            f"select id, priority, place from jobs where state in ('queued', 'paused') order by {ORDER}"
        ).fetchall()

    def position(self, job: Job) -> int | None:
        """Number of jobs before a waiting one; None for others."""
        if job.state not in WAITING:
            return None
        (count,) = self.db.execute(
            "select count(*) from jobs, (select priority as p, place as at, number as n from jobs where id = ?) "
            "where state in ('queued', 'paused') "
            "and (priority > p or priority = p and (place < at or place = at and number < n))",
            (job.id,),
        ).fetchone()
        return count

    def length(self) -> int:
        """Number of waiting jobs."""
        return self.db.execute("select count(*) from jobs where state in ('queued', 'paused')").fetchone()[0]

    def num_ready(self) -> int:
        """Number of jobs that can be claimed."""
        return self.db.execute("select count(*) from jobs where state = 'queued'").fetchone()[0]

    def counts(self) -> dict[str, int]:
        """Number of jobs in each state."""
        return dict(self.db.execute("select state, count(*) from jobs group by state").fetchall())

    def waiting(self) -> list[Job]:
        """All jobs that wait, in their order."""
        return [
            job_of(row)
            for row in self.db.execute(
                f"select {COLUMNS} from jobs where state in ('queued', 'paused') order by {ORDER}"
            )
        ]

    def history(
        self, states: Sequence[str] = (), search: str = "", limit: int = 50, before: int | None = None
    ) -> list[Job]:
        """Jobs, newest first. states: these alone. search: what their prompts hold, in any case. before: a number."""
        where = ["number < ?"]
        values: list[Any] = [2**62 if before is None else before]
        if states:
            where.append(f"state in ({', '.join('?' * len(states))})")
            values += states
        for word in search.split():
            where.append("instr(lower(prompt), lower(?))")
            values.append(word)
        rows = self.db.execute(
            f"select {COLUMNS} from jobs where {' and '.join(where)} order by number desc limit ?",
            (*values, limit),
        )
        return [job_of(row) for row in rows]

    def delete(self, id: str) -> None:
        self.db.execute("delete from jobs where id = ?", (id,))
        about = self.kept(f"comfy {id}", {})
        names = (f"comfy {id}", f"progress {id}", f"comfy-id {about.get('id')}")
        self.db.execute("delete from kept where name in (?, ?, ?)", names)

    def keep(self, name: str, value: Any) -> None:
        """Remember a setting of the server."""
        self.db.execute("insert or replace into kept values (?, ?)", (name, json.dumps(value)))

    def kept(self, name: str, default: Any = None) -> Any:
        """A setting that was remembered."""
        row = self.db.execute("select value from kept where name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else default
