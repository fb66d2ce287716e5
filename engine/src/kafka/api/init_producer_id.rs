//! InitProducerId: an id for an idempotent producer. Transactions are not served.

use tidemill_wal::format::ShardId;

use super::{Step, ask, decode, first_error, head_of, reply_as, respond};
use crate::command::{Command, Refusal};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{InitProducerIdRequest, InitProducerIdResponse};
use crate::kafka::session::Context;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    let wanted = decode!(cx, request, InitProducerIdRequest);
    // Without a transaction, an id that the producer brings is not looked at: it gets a new one, as
    // from Kafka. Half a one is a mistake.
    let is_half = (wanted.producer_id == -1) != (wanted.producer_epoch == -1);
    if wanted.transactional_id.is_some() || is_half {
        return finish(request, Err(ErrorCode::InvalidRequest));
    }
    let head = head_of(request);
    ask(vec![(ShardId(0), Command::InitProducerId)], move |_, replies| {
        let reply = replies.into_iter().next().expect("one for each command");
        let id = reply_as!(InitProducerId, reply).flatten();
        finish(&head, id.map_err(refusal_code))
    })
}

/// The one code that every client waits and asks again for; aiokafka gives up on a timeout.
fn refusal_code(refusal: Refusal) -> ErrorCode {
    match ErrorCode::for_admin(refusal) {
        ErrorCode::RequestTimedOut => ErrorCode::CoordinatorLoadInProgress,
        code => code,
    }
}

fn finish(request: &RequestFrame, id: Result<i64, ErrorCode>) -> Step {
    let (producer_id, producer_epoch, error_code) = match id {
        Ok(id) => (id, 0, ErrorCode::None),
        Err(code) => (-1, -1, code),
    };
    let response =
        InitProducerIdResponse { error_code, producer_id, producer_epoch, ..Default::default() };
    respond::<InitProducerIdRequest>(request, &response, first_error([error_code]))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, answer, asked};
    use super::*;
    use crate::command::Reply;

    fn check(reply: Reply) -> (ErrorCode, i64, i16) {
        let world = World::new();
        let (commands, then) = asked(world.handle(5, &InitProducerIdRequest::default()));
        assert!(matches!(commands[..], [(ShardId(0), Command::InitProducerId)]));
        let step = then(&world.context(), vec![reply]);
        let (response, error) = answer::<InitProducerIdRequest>(5, step);
        assert_eq!(error.unwrap_or_default(), response.error_code);
        (response.error_code, response.producer_id, response.producer_epoch)
    }

    #[test]
    fn a_producer_gets_a_new_id_with_epoch_0() {
        assert_eq!(check(Reply::InitProducerId(Ok(4000))), (ErrorCode::None, 4000, 0));
    }

    #[test]
    fn a_refusal_is_one_that_clients_retry() {
        let refused = (ErrorCode::CoordinatorLoadInProgress, -1, -1);
        assert_eq!(check(Reply::InitProducerId(Err(Refusal::DiskFull))), refused);
        assert_eq!(check(Reply::Refused(Refusal::Busy)), refused);
        assert_eq!(check(Reply::Refused(Refusal::Stopping)), refused);
    }

    #[test]
    fn transactions_and_half_an_id_are_refused() {
        for wanted in [
            InitProducerIdRequest { transactional_id: Some("t".into()), ..Default::default() },
            InitProducerIdRequest { producer_id: 5, ..Default::default() },
            InitProducerIdRequest { producer_epoch: 5, ..Default::default() },
        ] {
            let response = World::new().answer(4, &wanted);
            assert_eq!(response.error_code, ErrorCode::InvalidRequest);
            assert_eq!((response.producer_id, response.producer_epoch), (-1, -1));
        }
    }
}
