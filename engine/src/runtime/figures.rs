//! What a shard says of its topologies, as the admin port shows it.

use crate::admin::telemetry::{
    EdgeFigures, OperatorFigures, Spread, StageFigures, TopologyFigures,
};
use crate::shard::{EdgeFacts, OperatorFacts, StageFacts, TopologyFacts};
use crate::topology::CallTimes;

/// The figures of a topology at a time of the machine's clock, in milliseconds since 1970.
pub fn of_topology(facts: TopologyFacts<'_>, now_ms: i64) -> TopologyFigures {
    let TopologyFacts { plan, pause, counts, watermark_ms, waiting, waiting_size, .. } = facts;
    let stage = |it: StageFacts<'_>| StageFigures {
        stage: it.stage.to_owned(),
        waiting: it.waiting,
        waiting_size: it.waiting_size,
    };
    let edge = |it: EdgeFacts<'_>| EdgeFigures {
        from: it.from.to_owned(),
        to: it.to.to_owned(),
        records: it.records,
    };
    TopologyFigures {
        topology: plan.name().to_owned(),
        pause: pause.map(str::to_owned),
        records: counts.records,
        arrivals: counts.arrivals,
        timers: counts.timers,
        sent: counts.sent,
        misplaced: counts.misplaced,
        late: counts.late,
        rejected: counts.rejected,
        waiting,
        waiting_size,
        calls: counts.calls,
        calls_waiting: facts.calls_waiting,
        calls_open: facts.calls_open,
        missed: counts.missed,
        watermark_ms: watermark_ms.filter(|time_ms| *time_ms != i64::MIN),
        operators: facts.operators.into_iter().map(|it| of_operator(it, now_ms)).collect(),
        edges: facts.edges.into_iter().map(edge).collect(),
        stages: facts.stages.into_iter().map(stage).collect(),
    }
}

fn of_operator(facts: OperatorFacts<'_>, now_ms: i64) -> OperatorFigures {
    let OperatorFacts { operator, counts, call_times, watermark_ms, state } = facts;
    OperatorFigures {
        operator: operator.to_owned(),
        records: counts.records,
        timers: counts.timers,
        emitted: counts.emitted,
        late: counts.late,
        failed: counts.failed,
        watermark_ms,
        watermark_lag_ms: watermark_ms.map(|time_ms| now_ms.saturating_sub(time_ms)),
        state_entries: state.count as u64,
        state_size: state.size as u64,
        call_times: spread(call_times),
    }
}

fn spread(times: &CallTimes) -> Spread {
    Spread { sum: times.sum_ns(), buckets: times.buckets().collect() }
}
