//! ApiVersions: what is spoken here. Versions that are not served never come this far.

use super::{Step, decode, respond};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::frame::RequestFrame;
use crate::kafka::messages::{ApiVersionsRequest, ApiVersionsResponse};
use crate::kafka::session::Context;

pub(super) fn handle(cx: &Context<'_>, request: &RequestFrame, _peer: &str) -> Step {
    decode!(cx, request, ApiVersionsRequest);
    let response = ApiVersionsResponse::advertised(ErrorCode::None);
    respond::<ApiVersionsRequest>(request, &response, None)
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;
    use crate::kafka::api_key::ApiKey;

    #[test]
    fn every_version_names_every_api() {
        for version in ApiKey::ApiVersions.served() {
            let response = World::new().answer(version, &ApiVersionsRequest::default());
            assert_eq!(response, ApiVersionsResponse::advertised(ErrorCode::None), "{version}");
        }
    }
}
