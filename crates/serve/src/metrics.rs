//! Counters since the start of the process, in the text format of Prometheus.

use crate::{
    job::JobStatus,
    queue::{Queue, QueueCounts},
};
use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Counters of a server.
#[derive(Debug, Default)]
pub struct Metrics {
    created: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    steps: AtomicU64,
    /// Milliseconds that the worker was busy.
    busy: AtomicU64,
    /// Responses by first digit of their status.
    responses: [AtomicU64; 6],
    connections: AtomicU64,
    open_connections: AtomicU64,
    rejected_connections: AtomicU64,
}

impl Metrics {
    pub(crate) fn created(&self) {
        self.created.fetch_add(1, Relaxed);
    }

    pub(crate) fn ended(&self, status: JobStatus) {
        let counter = match status {
            JobStatus::Completed => &self.completed,
            JobStatus::Failed => &self.failed,
            JobStatus::Cancelled => &self.cancelled,
            JobStatus::Queued | JobStatus::InProgress => return,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn step(&self) {
        self.steps.fetch_add(1, Relaxed);
    }

    pub(crate) fn busy(&self, seconds: f64) {
        self.busy.fetch_add((seconds * 1000.0) as u64, Relaxed);
    }

    pub(crate) fn response(&self, status: u16) {
        if let Some(counter) = self.responses.get(usize::from(status / 100)) {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.open_connections.fetch_add(1, Relaxed);
    }

    pub(crate) fn disconnected(&self) {
        self.open_connections.fetch_sub(1, Relaxed);
    }

    pub(crate) fn rejected_connection(&self) {
        self.rejected_connections.fetch_add(1, Relaxed);
    }
}

/// Returns the counters of a queue and its server.
pub(crate) fn text(queue: &Queue) -> String {
    let metrics = &queue.metrics;
    let QueueCounts { jobs, bytes } = queue.counts();
    let get = |counter: &AtomicU64| counter.load(Relaxed) as f64;
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, values: &[(&str, f64)]| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP opensora_{name} {help}\n# TYPE opensora_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(out, "opensora_{name}{labels} {value}");
        }
    };
    let by_status: Vec<(String, f64)> = JobStatus::ALL
        .iter()
        .zip(jobs)
        .map(|(status, count)| (format!("{{status=\"{}\"}}", status.name()), count as f64))
        .collect();
    let by_status: Vec<(&str, f64)> =
        by_status.iter().map(|(labels, count)| (labels.as_str(), *count)).collect();
    family("jobs", "gauge", "Jobs by status.", &by_status);
    family(
        "jobs_bytes",
        "gauge",
        "Bytes of all jobs on disk, reserved ones included.",
        &[("", bytes as f64)],
    );
    family(
        "jobs_created_total",
        "counter",
        "Jobs that were accepted.",
        &[("", get(&metrics.created))],
    );
    let ended = [
        ("{status=\"completed\"}", get(&metrics.completed)),
        ("{status=\"failed\"}", get(&metrics.failed)),
        ("{status=\"cancelled\"}", get(&metrics.cancelled)),
    ];
    family("jobs_ended_total", "counter", "Jobs that ended, by status.", &ended);
    family("sampler_steps_total", "counter", "Steps of the sampler.", &[("", get(&metrics.steps))]);
    let busy = get(&metrics.busy) / 1000.0;
    family("worker_busy_seconds_total", "counter", "Time that the worker computed.", &[("", busy)]);
    let alive = f64::from(u8::from(queue.is_alive()));
    family("worker_up", "gauge", "1 if the worker runs.", &[("", alive)]);
    let responses: Vec<(String, f64)> = (1..6)
        .map(|class| (format!("{{code=\"{class}xx\"}}"), get(&metrics.responses[class])))
        .collect();
    let responses: Vec<(&str, f64)> =
        responses.iter().map(|(labels, count)| (labels.as_str(), *count)).collect();
    family("http_responses_total", "counter", "Responses by class of status.", &responses);
    family(
        "http_connections_total",
        "counter",
        "Connections that were accepted.",
        &[("", get(&metrics.connections))],
    );
    family(
        "http_connections_open",
        "gauge",
        "Open connections.",
        &[("", get(&metrics.open_connections))],
    );
    family(
        "http_connections_rejected_total",
        "counter",
        "Connections that were closed because of too many others.",
        &[("", get(&metrics.rejected_connections))],
    );
    out
}
