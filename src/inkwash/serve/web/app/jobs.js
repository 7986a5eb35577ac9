// The jobs that this page knows of, kept up to date by the server's events.

import { events, get, post } from "./api.js";

const RECENT = 60;
const jobs = new Map();
const previews = new Map(); // of running jobs: the address of the newest
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

export function put(job) {
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

export const submit = async (body) => put(await post("/api/jobs", body));
export const cancel = async (id) => put(await post(`/api/jobs/${id}/cancel`));
export const retry = async (id) => put(await post(`/api/jobs/${id}/retry`));

/** Ask for the newest jobs and for all that wait. */
export async function refresh() {
  const [recent, queue] = await Promise.all([get(`/api/jobs?limit=${RECENT}`), get("/api/queue")]);
  const known = new Map([...recent.jobs, ...(queue.jobs ?? [])].map((job) => [job.id, job]));
  for (const job of unfinished()) if (!known.has(job.id)) jobs.delete(job.id);
  for (const job of known.values()) put(job);
  return queue;
}

/** Follow the server's events. connected: is told whether they come. */
export function listen(connected) {
  events(
    "/api/events",
    {
      job: put,
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
