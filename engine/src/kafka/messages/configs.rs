//! Configurations: DescribeConfigs, AlterConfigs, IncrementalAlterConfigs.

use crate::kafka::error_code::ErrorCode;
use crate::kafka::wire::{Text, message};

message! {
    /// Asks for configurations.
    DescribeConfigsRequest {
        resources: Vec<DescribeConfigsResource>,
        include_synonyms: bool,
        include_documentation: bool [3..],
    }

    /// One topic or broker, and which keys: null means all.
    DescribeConfigsResource {
        resource_type: i8,
        resource_name: Text,
        configuration_keys: Option<Vec<Text>> = Some(Vec::new()),
    }

    /// Configurations.
    DescribeConfigsResponse {
        throttle_time_ms: i32,
        results: Vec<DescribeConfigsResult>,
    }

    /// One resource's configuration.
    DescribeConfigsResult {
        error_code: ErrorCode,
        error_message: Option<Text>,
        resource_type: i8,
        resource_name: Text,
        configs: Vec<DescribedConfig>,
    }

    /// One key.
    DescribedConfig {
        name: Text,
        value: Option<Text>,
        read_only: bool,
        config_source: i8 = -1,
        is_sensitive: bool,
        synonyms: Vec<ConfigSynonym>,
        config_type: i8 [3..],
        documentation: Option<Text> [3..],
    }

    /// Another place that sets the same key.
    ConfigSynonym {
        name: Text,
        value: Option<Text>,
        source: i8,
    }

    /// Configurations that replace all that was set.
    AlterConfigsRequest {
        resources: Vec<AlterConfigsResource>,
        validate_only: bool,
    }

    /// One resource's new configuration.
    AlterConfigsResource {
        resource_type: i8,
        resource_name: Text,
        configs: Vec<AlterConfig>,
    }

    /// One key.
    AlterConfig {
        name: Text,
        value: Option<Text>,
    }

    /// Which configurations are changed.
    AlterConfigsResponse {
        throttle_time_ms: i32,
        responses: Vec<AlterConfigsResourceResponse>,
    }

    /// Whether one resource's configuration is changed.
    AlterConfigsResourceResponse {
        error_code: ErrorCode,
        error_message: Option<Text>,
        resource_type: i8,
        resource_name: Text,
    }

    /// Changes of single keys.
    IncrementalAlterConfigsRequest {
        resources: Vec<IncrementalAlterConfigsResource>,
        validate_only: bool,
    }

    /// One resource's changes.
    IncrementalAlterConfigsResource {
        resource_type: i8,
        resource_name: Text,
        configs: Vec<IncrementalAlterConfig>,
    }

    /// One key: set (0), reset (1), append to its list (2) or take from it (3).
    IncrementalAlterConfig {
        name: Text,
        config_operation: i8,
        value: Option<Text>,
    }

    /// Which configurations are changed.
    IncrementalAlterConfigsResponse {
        throttle_time_ms: i32,
        responses: Vec<AlterConfigsResourceResponse>,
    }
}
