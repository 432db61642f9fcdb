//! `copepod stats`: what each container uses, from two looks at its counters.

use std::time::Duration;

use copepod_agent::api::ContainerUse;

use crate::out::{harmless, table};

/// The table; CPU is what was used between `before` and `after`, which lie `apart`.
pub(crate) fn containers(
    before: &[ContainerUse],
    after: &[ContainerUse],
    apart: Duration,
) -> String {
    let header =
        ["NAMESPACE", "POD", "CONTAINER", "CPU(cores)", "MEMORY(bytes)", "REQUESTS", "INSTANCES"];
    let mut rows: Vec<_> = after
        .iter()
        .map(|now| {
            vec![
                harmless(&now.pod.namespace),
                harmless(&now.pod.name),
                harmless(&now.container),
                format!("{}m", millicores(before, now, apart)),
                memory(now.memory),
                now.requests.to_string(),
                now.instances.to_string(),
            ]
        })
        .collect();
    rows.sort();
    table(&header, &rows)
}

fn millicores(before: &[ContainerUse], now: &ContainerUse, apart: Duration) -> u128 {
    let then = before.iter().find(|it| it.pod == now.pod && it.container == now.container);
    let then = then.map_or(now.cpu_ns, |it| it.cpu_ns);
    // A counter that went back is a new attempt's: all of it was used since.
    let used = now.cpu_ns.checked_sub(then).unwrap_or(now.cpu_ns);
    // Rounded up, so that what is in use never reads 0.
    (u128::from(used) * 1000).div_ceil(apart.as_nanos().max(1))
}

/// Bytes as kubectl top shows them, in a unit that keeps small guests visible.
pub(crate) fn memory(bytes: u64) -> String {
    match bytes {
        b if b < 10 << 10 => format!("{b}"),
        b if b < 10 << 20 => format!("{}Ki", b >> 10),
        b => format!("{}Mi", b >> 20),
    }
}

#[cfg(test)]
mod tests {
    use copepod_agent::api::PodName;

    use super::*;

    fn using(container: &str, cpu_ns: u64, memory: u64) -> ContainerUse {
        ContainerUse {
            pod: PodName { namespace: "default".into(), name: "web".into() },
            container: container.into(),
            cpu_ns,
            memory,
            requests: 7,
            instances: 1,
        }
    }

    #[test]
    fn cpu_is_what_was_used_between_two_looks() {
        let before = [using("app", 1_000_000_000, 0), using("back", 9_000_000_000, 0)];
        let after = [
            using("new", 5_000_000, 100),
            using("back", 100_000_000, 3 << 20),
            using("app", 1_250_000_000, 64 << 20),
        ];

        assert_eq!(
            containers(&before, &after, Duration::from_millis(500)),
            "NAMESPACE   POD   CONTAINER   CPU(cores)   MEMORY(bytes)   REQUESTS   INSTANCES\n\
             default     web   app         500m         64Mi            7          1\n\
             default     web   back        200m         3072Ki          7          1\n\
             default     web   new         0m           100             7          1\n"
        );
    }
}
