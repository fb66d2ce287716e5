//! Frames of the protocol: a length, a header, a body.
//!
//! A header is read without its body, so that a request whose version nobody knows is still named.
//! ApiVersions of an unknown version is answered with what is spoken here (KIP-511); any other
//! unknown request ends the connection, as its reply could not be understood either.

use bytes::{Buf, Bytes, BytesMut};

use super::api_key::ApiKey;
use super::error_code::ErrorCode;
use super::messages::{ApiVersionsResponse, Request};
use super::wire::{DecodeError, Pieces, Reader, Text, Wire, Writer};

/// Bytes of the length before a frame.
pub const LENGTH_SIZE: usize = 4;

/// Why a connection ends. Nothing can be answered: the other side does not speak this protocol, or
/// not these versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// A negative frame length.
    #[error("frame of {size} bytes: not the Kafka protocol, or TLS where none is spoken")]
    FrameNegative {
        /// What was claimed.
        size: i32,
    },
    /// A frame length beyond the limit.
    #[error("frame of {size} bytes, the limit is {size_max}")]
    FrameTooLarge {
        /// What was claimed.
        size: usize,
        /// The limit.
        size_max: usize,
    },
    /// A header that cannot be read.
    #[error("request header: {0}")]
    Header(DecodeError),
    /// An API that is not served here.
    #[error("API {key} version {version} is not served")]
    UnknownApi {
        /// Its number.
        key: i16,
        /// The version asked for.
        version: i16,
    },
    /// A version that is not served here.
    #[error("{api} version {version} is not served, {} to {} are", api.served().start(), api.served().end())]
    UnsupportedVersion {
        /// The API.
        api: ApiKey,
        /// The version asked for.
        version: i16,
    },
    /// A body that cannot be read.
    #[error("{api} version {version}: {fault}")]
    Body {
        /// The API.
        api: ApiKey,
        /// Its version.
        version: i16,
        /// What is wrong.
        fault: DecodeError,
    },
    /// A produce that wants no answer failed: only the end of the connection can tell.
    #[error("a produce without acknowledgement failed with {error:?}")]
    Unacknowledged {
        /// The first error in it.
        error: ErrorCode,
    },
}

impl CloseReason {
    /// What it counts as among the errors of answers.
    pub fn error_code(&self) -> ErrorCode {
        match self {
            Self::UnknownApi { .. } | Self::UnsupportedVersion { .. } => {
                ErrorCode::UnsupportedVersion
            }
            Self::FrameNegative { .. }
            | Self::FrameTooLarge { .. }
            | Self::Header(_)
            | Self::Body { .. } => ErrorCode::InvalidRequest,
            Self::Unacknowledged { error } => *error,
        }
    }
}

/// Takes the first whole frame off what was received, without its length; `None`: more is needed.
pub fn take_frame(
    received: &mut BytesMut,
    size_max: usize,
) -> Result<Option<BytesMut>, CloseReason> {
    let Some(length) = received.first_chunk::<LENGTH_SIZE>() else { return Ok(None) };
    let size = frame_size(*length, size_max)?;
    if received.len() < LENGTH_SIZE + size {
        return Ok(None);
    }
    received.advance(LENGTH_SIZE);
    Ok(Some(received.split_to(size)))
}

/// The length of the frame that follows these bytes.
pub fn frame_size(length: [u8; 4], size_max: usize) -> Result<usize, CloseReason> {
    let size = i32::from_be_bytes(length);
    let Ok(unsigned) = usize::try_from(size) else {
        return Err(CloseReason::FrameNegative { size });
    };
    if unsigned > size_max {
        return Err(CloseReason::FrameTooLarge { size: unsigned, size_max });
    }
    Ok(unsigned)
}

/// A frame whose header is read.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// A request of a version that is served.
    Request(RequestFrame),
    /// ApiVersions of a version that is not: answer with [`unsupported_api_versions`].
    UnsupportedApiVersions {
        /// For the answer.
        correlation_id: i32,
    },
}

/// A request whose body is still to be read.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestFrame {
    /// What is asked.
    pub api: ApiKey,
    /// In which version.
    pub version: i16,
    /// Comes back in the answer.
    pub correlation_id: i32,
    /// What the client calls itself.
    pub client_id: Option<Text>,
    /// Still encoded.
    pub body: Bytes,
}

impl Incoming {
    /// Reads the header of a frame.
    pub fn decode(frame: Bytes) -> Result<Self, CloseReason> {
        let memory_max = 0; // Nothing in a header is an array.
        let mut reader = Reader::new(frame, 0, false, memory_max);
        let key = i16::read(&mut reader).map_err(CloseReason::Header)?;
        let version = i16::read(&mut reader).map_err(CloseReason::Header)?;
        let correlation_id = i32::read(&mut reader).map_err(CloseReason::Header)?;
        let Some(api) = ApiKey::from_number(key) else {
            return Err(CloseReason::UnknownApi { key, version });
        };
        if !api.served().contains(&version) {
            return match api {
                ApiKey::ApiVersions => Ok(Self::UnsupportedApiVersions { correlation_id }),
                _ => Err(CloseReason::UnsupportedVersion { api, version }),
            };
        }
        // The length of the client id is never compact, so that any server can read it.
        let client_id = Option::<Text>::read(&mut reader).map_err(CloseReason::Header)?;
        if api.is_flexible(version) {
            reader.tagged(|_, _| Ok(())).map_err(CloseReason::Header)?;
        }
        let body = reader.into_rest();
        Ok(Self::Request(RequestFrame { api, version, correlation_id, client_id, body }))
    }
}

impl RequestFrame {
    /// Reads the body, which takes at most `memory_max` bytes beside the frame itself. Bytes after
    /// the last field are ignored, as Kafka does.
    pub fn decode<R: Request>(&self, memory_max: usize) -> Result<R, CloseReason> {
        assert_eq!(R::API, self.api, "the caller chose by the API");
        let flexible = self.api.is_flexible(self.version);
        let mut reader = Reader::new(self.body.clone(), self.version, flexible, memory_max);
        R::read(&mut reader).map_err(|fault| CloseReason::Body {
            api: self.api,
            version: self.version,
            fault,
        })
    }

    /// The answer's frame.
    pub fn encode_response<R: Request>(&self, response: &R::Response) -> Pieces {
        encode_response::<R>(self.version, self.correlation_id, response)
    }
}

/// The frame of an answer to a request of the given version.
pub fn encode_response<R: Request>(
    version: i16,
    correlation_id: i32,
    response: &R::Response,
) -> Pieces {
    let mut writer = Writer::frame(version);
    correlation_id.write(&mut writer);
    if R::API.is_response_header_flexible(version) {
        writer.uvarint(0);
    }
    writer.set_flexible(R::API.is_flexible(version));
    response.write(&mut writer);
    writer.finish_frame()
}

/// The answer to ApiVersions of a version that is not served: version 0, which every client reads.
pub fn unsupported_api_versions(correlation_id: i32) -> Pieces {
    let response = ApiVersionsResponse::advertised(ErrorCode::UnsupportedVersion);
    encode_response::<super::messages::ApiVersionsRequest>(0, correlation_id, &response)
}

/// The frame of a request, for clients.
pub fn encode_request<R: Request>(
    version: i16,
    correlation_id: i32,
    client_id: Option<&str>,
    request: &R,
) -> Pieces {
    let mut writer = Writer::frame(version);
    R::API.number().write(&mut writer);
    version.write(&mut writer);
    correlation_id.write(&mut writer);
    client_id.map(Text::from).write(&mut writer);
    writer.set_flexible(R::API.is_flexible(version));
    if writer.flexible() {
        writer.uvarint(0);
    }
    request.write(&mut writer);
    writer.finish_frame()
}

/// Reads the frame of an answer, without its length, for clients: correlation id and body.
pub fn decode_response<R: Request>(
    version: i16,
    frame: Bytes,
    memory_max: usize,
) -> Result<(i32, R::Response), DecodeError> {
    let mut reader = Reader::new(frame, version, R::API.is_flexible(version), memory_max);
    let correlation_id = i32::read(&mut reader)?;
    if R::API.is_response_header_flexible(version) {
        reader.tagged(|_, _| Ok(()))?;
    }
    Ok((correlation_id, R::Response::read(&mut reader)?))
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages as reference;
    use kafka_protocol::protocol::{Decodable, Encodable};

    use super::*;
    use crate::kafka::messages::{
        ApiVersionsRequest, FetchRequest, HeartbeatRequest, MetadataRequest, ProduceRequest,
    };

    const SIZE_MAX: usize = 1024;

    #[test]
    fn frames_are_taken_one_by_one_and_only_when_whole() {
        let mut received = BytesMut::new();
        let mut trace = Vec::new();
        for chunk in [&b"\0\0"[..], b"\0\x03a", b"bc\0\0\0\x01d\0\0\0\0", b""] {
            received.extend_from_slice(chunk);
            trace.push(take_frame(&mut received, SIZE_MAX).unwrap());
        }
        let frame = |text: &str| Some(BytesMut::from(text));
        assert_eq!(trace, [None, None, frame("abc"), frame("d")]);
        assert_eq!(take_frame(&mut received, SIZE_MAX), Ok(frame("")));
    }

    #[test]
    fn a_length_beyond_the_limit_closes_before_the_frame_has_come() {
        let mut received = BytesMut::from(&1025_i32.to_be_bytes()[..]);
        let reason = CloseReason::FrameTooLarge { size: 1025, size_max: SIZE_MAX };
        assert_eq!(take_frame(&mut received, SIZE_MAX), Err(reason));
        // The first bytes of a TLS handshake are no negative length; those of garbage may be.
        let mut received = BytesMut::from(&[0xff, 0, 0, 0][..]);
        let reason = CloseReason::FrameNegative { size: i32::from_be_bytes([0xff, 0, 0, 0]) };
        assert_eq!(take_frame(&mut received, SIZE_MAX), Err(reason));
    }

    fn header(key: i16, version: i16) -> Bytes {
        let mut frame = Vec::new();
        frame.extend(key.to_be_bytes());
        frame.extend(version.to_be_bytes());
        frame.extend(7_i32.to_be_bytes());
        frame.extend((-1_i16).to_be_bytes());
        frame.into()
    }

    #[test]
    fn only_api_versions_of_an_unknown_version_is_answered() {
        let unsupported = Ok(Incoming::UnsupportedApiVersions { correlation_id: 7 });
        for version in [5, 99, i16::MAX, -1] {
            assert_eq!(Incoming::decode(header(18, version)), unsupported);
        }
        let unknown = CloseReason::UnknownApi { key: 17, version: 1 };
        assert_eq!(Incoming::decode(header(17, 1)), Err(unknown));
        for (key, version, api) in [(0, 2, ApiKey::Produce), (1, 19, ApiKey::Fetch)] {
            let reason = CloseReason::UnsupportedVersion { api, version };
            assert_eq!(Incoming::decode(header(key, version)), Err(reason));
        }
        let short = Incoming::decode(header(3, 0).slice(..9));
        assert_eq!(short, Err(CloseReason::Header(DecodeError::Short)));
    }

    #[test]
    fn the_answer_to_an_unknown_api_versions_is_read_as_version_0() {
        let mut frame = unsupported_api_versions(7).concat();
        assert_eq!(frame.get_i32() as usize, frame.len());
        assert_eq!(frame.get_i32(), 7);
        let response = reference::ApiVersionsResponse::decode(&mut frame, 0).unwrap();
        assert!(frame.is_empty());
        assert_eq!(response.error_code, 35);
        let ranges: Vec<_> = response
            .api_keys
            .iter()
            .filter(|range| range.api_key < 2)
            .map(|range| (range.api_key, range.min_version, range.max_version))
            .collect();
        assert_eq!(ranges, [(0, 0, 13), (1, 4, 18)]);
        assert_eq!(response.api_keys.len(), ApiKey::ALL.len());
    }

    #[test]
    fn the_answer_to_api_versions_never_has_a_flexible_header() {
        for version in ApiKey::ApiVersions.served() {
            let response = ApiVersionsResponse::advertised(ErrorCode::None);
            let mut frame =
                encode_response::<ApiVersionsRequest>(version, 7, &response).concat().slice(8..);
            let reference = reference::ApiVersionsResponse::decode(&mut frame, version).unwrap();
            assert_eq!(reference.api_keys.len(), ApiKey::ALL.len());
            assert!(frame.is_empty());
        }
    }

    fn header_as_the_reference<R: Request>(version: i16, request: &R) {
        let mut frame = encode_request(version, 7, Some("tide"), request).concat();
        assert_eq!(frame.get_i32() as usize, frame.len());
        let Ok(Incoming::Request(incoming)) = Incoming::decode(frame.clone()) else {
            panic!("{} {version} is served", R::API);
        };
        assert_eq!((incoming.api, incoming.version), (R::API, version));
        assert_eq!((incoming.correlation_id, &**incoming.client_id.as_ref().unwrap()), (7, "tide"));

        let header_version = if R::API.is_flexible(version) { 2 } else { 1 };
        let mut rest = frame.clone();
        let header = reference::RequestHeader::decode(&mut rest, header_version).unwrap();
        assert_eq!(rest, incoming.body);
        let mut again = BytesMut::new();
        header.encode(&mut again, header_version).unwrap();
        assert_eq!(again, frame[..frame.len() - rest.len()]);
    }

    #[test]
    fn request_headers_agree_with_the_reference() {
        for version in ApiKey::Produce.served() {
            header_as_the_reference(version, &ProduceRequest::default());
        }
        for version in ApiKey::Fetch.served() {
            header_as_the_reference(version, &FetchRequest::default());
        }
        for version in ApiKey::ApiVersions.served() {
            header_as_the_reference(version, &ApiVersionsRequest::default());
        }
        for version in ApiKey::Heartbeat.served() {
            header_as_the_reference(version, &HeartbeatRequest::default());
        }
    }

    #[test]
    fn a_body_that_breaks_off_names_its_api() {
        let mut frame = header(3, 1).to_vec();
        frame.extend(3_i32.to_be_bytes());
        let Ok(Incoming::Request(incoming)) = Incoming::decode(frame.into()) else { panic!() };
        let reason = incoming.decode::<MetadataRequest>(SIZE_MAX).unwrap_err();
        assert_eq!(
            reason.to_string(),
            "Metadata version 1: a length or count is larger than the message"
        );
    }
}
