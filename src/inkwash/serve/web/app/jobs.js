// The jobs that this page knows of, kept up to date by the server's events.

import { call, events, get } from "./api.js";

const RECENT = 60;
const jobs = new Map();
const previews = new Map(); // of running jobs: the address of the newest
const heard = new Map(); // from when what is known of a job is: its event's arrival, or the asking for an answer
const watchers = new Set();

/** Be called with (job, what changed: "job", "progress", "preview" or "gone"). */
export function watch(call) {
  watchers.add(call);
}

function changed(job, what) {
  for (const call of watchers) call(job, what);
}

export const find = (id) => jobs.get(id);
export const preview = (id) => previews.get(id);

/** Newest first. */
export const newest = () => [...jobs.values()].sort((a, b) => b.created - a.created).slice(0, RECENT);

/** Running ones, then those that wait, in their order. */
export function unfinished() {
  const place = (job) => (job.state === "running" ? -1 : (job.position ?? Infinity));
  return [...jobs.values()]
    .filter((job) => ["queued", "running", "paused"].includes(job.state))
    .sort((a, b) => place(a) - place(b));
}

/** Keep what the server said of a job. asked: when, where it was an answer: what is known from later is newer. */
function put(job, asked = Infinity) {
  if (heard.get(job.id) > asked) return jobs.get(job.id);
  heard.set(job.id, Math.min(asked, performance.now()));
  if (!["queued", "running", "paused"].includes(job.state)) previews.delete(job.id);
  jobs.set(job.id, job);
  changed(job, "job");
  return job;
}

export function forget(id) {
  const job = jobs.get(id);
  jobs.delete(id);
  if (job) changed(job, "gone");
}

async function ask(method, path, body = {}) {
  const asked = performance.now();
  return put(await call(method, path, body), asked);
}

/** Ask for a new job; kind: "jobs", or "train" or "merge". */
export const submit = (body, kind = "jobs") => ask("POST", `/api/${kind}`, body);
export const change = (id, values) => ask("PATCH", `/api/jobs/${id}`, values);
export const cancel = (id) => ask("POST", `/api/jobs/${id}/cancel`);
export const retry = (id) => ask("POST", `/api/jobs/${id}/retry`);

/** Ask for the newest jobs, and for all that run or wait. */
export async function refresh() {
  const asked = performance.now();
  const paths = [`/api/jobs?limit=${RECENT}`, "/api/jobs?state=running", "/api/queue"];
  const [recent, running, queue] = await Promise.all(paths.map(get));
  const known = new Map([...recent.jobs, ...running.jobs, ...queue.jobs].map((job) => [job.id, job]));
  for (const { id } of unfinished()) if (!known.has(id) && heard.get(id) < asked) jobs.delete(id);
  for (const job of known.values()) put(job, asked);
  return queue;
}

/** Follow the server's events. connected: is told whether they come. */
export function listen(connected) {
  events(
    "/api/events",
    {
      job: (job) => put(job),
      progress({ id, ...progress }) {
        const job = jobs.get(id);
        if (!job) return;
        job.progress = progress;
        changed(job, "progress");
      },
      preview({ id, image }) {
        const job = jobs.get(id);
        if (!job) return;
        previews.set(id, image);
        changed(job, "preview");
      },
    },
    (is) => {
      connected(is);
      if (is) refresh().catch(() => connected(false)); // what happened meanwhile
    },
  );
}
