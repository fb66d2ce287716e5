//! What this node speaks: ApiVersions.

use crate::kafka::api_key::ApiKey;
use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Asks which APIs and versions there are; the first request of a connection.
    ApiVersionsRequest {
        client_software_name: Text [3..],
        client_software_version: Text [3..],
    }

    /// The APIs and versions there are.
    ApiVersionsResponse {
        error_code: ErrorCode,
        api_keys: Vec<ApiVersion>,
        throttle_time_ms: i32 [1..],
        supported_features: Vec<SupportedFeature> [3.., tag 0],
        finalized_features_epoch: i64 [3.., tag 1] = -1,
        finalized_features: Vec<FinalizedFeature> [3.., tag 2],
    }

    /// Versions of one API.
    ApiVersion {
        api_key: i16,
        min_version: i16,
        max_version: i16,
    }

    /// A feature that could be turned on.
    SupportedFeature {
        name: Text,
        min_version: i16,
        max_version: i16,
    }

    /// A feature that is on.
    FinalizedFeature {
        name: Text,
        max_version_level: i16,
        min_version_level: i16,
    }
}

impl ApiVersionsResponse {
    /// All that is advertised, without features.
    pub fn advertised(error_code: ErrorCode) -> Self {
        let api_keys = ApiKey::ALL
            .iter()
            .map(|api| ApiVersion {
                api_key: api.number(),
                min_version: *api.advertised().start(),
                max_version: *api.advertised().end(),
            })
            .collect();
        Self { error_code, api_keys, ..Self::default() }
    }
}
