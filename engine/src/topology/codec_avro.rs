//! Avro, by the crate of the Avro project.

use std::marker::PhantomData;
use std::sync::Arc;

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema::Name;
use apache_avro::util::max_allocation_bytes;
use apache_avro::writer::datum::GenericDatumWriter;
use apache_avro::{Schema, from_value};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{Codec, CodecError};

/// Most bytes of one text, list or map, so that a few bad bytes do not ask for all of the memory.
const ITEM_SIZE_MAX: usize = 64 << 20;

/// A value of Avro by a schema, as its bytes alone: without a container, and without the number that
/// a schema registry gives.
///
/// State is read by the schema of the version that wrote it and becomes a value of the newest by
/// Avro's own rules: new fields need a default.
///
/// A schema that contains itself is refused: a record could nest so deep that reading it ends the
/// process.
pub struct Avro<T> {
    /// Of each version from 1; the last one is written.
    schemas: Arc<[Schema]>,
    of: PhantomData<fn() -> T>,
}

impl<T> Avro<T> {
    /// By a schema in JSON, which is version 1.
    pub fn new(schema: &str) -> Result<Self, CodecError> {
        max_allocation_bytes(ITEM_SIZE_MAX);
        Ok(Self { schemas: Arc::new([parsed(schema)?]), of: PhantomData })
    }

    /// The next version: it writes by this schema, and reads what those before it wrote.
    pub fn next(self, schema: &str) -> Result<Self, CodecError> {
        let schemas = self.schemas.iter().cloned().chain([parsed(schema)?]).collect();
        Ok(Self { schemas, of: PhantomData })
    }

    fn newest(&self) -> &Schema {
        &self.schemas[self.schemas.len() - 1]
    }

    fn malformed(&self, reason: &dyn std::fmt::Display) -> CodecError {
        CodecError::Malformed { codec: name(self.newest()), reason: reason.to_string() }
    }
}

impl<T> Clone for Avro<T> {
    fn clone(&self) -> Self {
        Self { schemas: self.schemas.clone(), of: PhantomData }
    }
}

fn parsed(schema: &str) -> Result<Schema, CodecError> {
    let refused =
        |reason: String| CodecError::Malformed { codec: "an avro schema".to_owned(), reason };
    let schema = Schema::parse_str(schema).map_err(|error| refused(error.to_string()))?;
    match contains_itself(&schema, &mut Vec::new()) {
        true => Err(refused("it contains itself".to_owned())),
        false => Ok(schema),
    }
}

/// Whether a schema names one of those that it is in.
fn contains_itself(schema: &Schema, around: &mut Vec<Name>) -> bool {
    match schema {
        Schema::Ref { name } => around.contains(name),
        Schema::Array(array) => contains_itself(&array.items, around),
        Schema::Map(map) => contains_itself(&map.types, around),
        Schema::Union(union) => union.variants().iter().any(|it| contains_itself(it, around)),
        Schema::Record(record) => {
            around.push(record.name.clone());
            let is_so = record.fields.iter().any(|field| contains_itself(&field.schema, around));
            around.pop();
            is_so
        }
        _ => false,
    }
}

fn name(schema: &Schema) -> String {
    match schema.name() {
        Some(name) => format!("avro {name}"),
        None => "avro".to_owned(),
    }
}

impl<T: Serialize + DeserializeOwned + Clone + Send + 'static> Codec for Avro<T> {
    type Value = T;

    fn name(&self) -> String {
        name(self.newest())
    }

    fn encode(&self, value: &T, to: &mut Vec<u8>) {
        // A type that is not the schema's is the operator's mistake, which is caught as one of its
        // panics is.
        let writer = GenericDatumWriter::builder(self.newest()).build();
        let written = writer.and_then(|writer| writer.write_ser(to, value));
        written.expect("a value of the type that the schema describes");
    }

    fn decode(&self, bytes: &Bytes) -> Result<T, CodecError> {
        self.decode_version(self.version(), bytes)
    }

    fn version(&self) -> u8 {
        u8::try_from(self.schemas.len()).expect("fewer than 256 versions")
    }

    fn reads(&self, version: u8) -> bool {
        (1..=self.version()).contains(&version)
    }

    fn decode_version(&self, version: u8, bytes: &Bytes) -> Result<T, CodecError> {
        let written_by = usize::from(version).checked_sub(1).and_then(|it| self.schemas.get(it));
        let Some(written_by) = written_by else {
            let (codec, found, version) = (self.name(), version, self.version());
            return Err(CodecError::Version { codec, found, version });
        };
        let mut rest = &bytes[..];
        let reader = GenericDatumReader::builder(written_by).reader_schema(self.newest()).build();
        let value = reader.and_then(|reader| reader.read_value(&mut rest));
        let value = value.and_then(|value| from_value(&value));
        let value = value.map_err(|error| self.malformed(&error))?;
        if !rest.is_empty() {
            return Err(self.malformed(&format_args!("{} bytes are left over", rest.len())));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Order {
        item: String,
        count: i64,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct OldOrder {
        item: String,
    }

    const OLD: &str = r#"{
        "type": "record", "name": "Order", "namespace": "shop",
        "fields": [{ "name": "item", "type": "string" }]
    }"#;

    const NEW: &str = r#"{
        "type": "record", "name": "Order", "namespace": "shop",
        "fields": [
            { "name": "item", "type": "string" },
            { "name": "count", "type": "long", "default": 1 }
        ]
    }"#;

    fn encoded<T: Serialize + DeserializeOwned + Clone + Send + 'static>(
        codec: &Avro<T>,
        value: &T,
    ) -> Bytes {
        let mut bytes = vec![9];
        codec.encode(value, &mut bytes);
        assert_eq!(bytes[0], 9, "it is appended");
        bytes.split_off(1).into()
    }

    #[test]
    fn values_come_back() {
        let codec = Avro::<Order>::new(NEW).expect("a schema");
        let order = Order { item: "tea".to_owned(), count: -2 };
        let bytes = encoded(&codec, &order);
        // Size and text, then the number, both with the sign in the lowest bit.
        assert_eq!(bytes[..], [6, b't', b'e', b'a', 3]);
        assert_eq!(codec.decode(&bytes).expect("ours"), order);
        assert_eq!(codec.name(), "avro shop.Order");
    }

    #[test]
    fn an_older_version_is_read_by_its_own_schema() {
        let old = Avro::<OldOrder>::new(OLD).expect("a schema");
        let bytes = encoded(&old, &OldOrder { item: "tea".to_owned() });
        let new = Avro::<Order>::new(OLD).expect("a schema").next(NEW).expect("a schema");
        assert_eq!((new.version(), new.reads(1), new.reads(2)), (2, true, true));
        assert!(!new.reads(0) && !new.reads(3));
        let read = new.decode_version(1, &bytes).expect("version 1");
        assert_eq!(read, Order { item: "tea".to_owned(), count: 1 });
        assert!(new.decode(&bytes).is_err(), "it is no version 2");
        let error = new.decode_version(3, &bytes).expect_err("of the future");
        assert!(matches!(error, CodecError::Version { found: 3, version: 2, .. }), "{error}");
    }

    #[test]
    fn other_bytes_and_no_schemas_are_named() {
        let codec = Avro::<Order>::new(NEW).expect("a schema");
        for bytes in [&[6, b't'][..], &[6, b't', b'e', b'a', 3, 0], &[0xfe; 20]] {
            let error = codec.decode(&Bytes::copy_from_slice(bytes)).expect_err("not ours");
            assert!(error.to_string().starts_with("not avro shop.Order: "), "{error}");
        }
        assert!(Avro::<Order>::new("no schema").is_err());
    }

    #[test]
    fn a_schema_that_contains_itself_is_refused() {
        let schema = r#"{"type": "record", "name": "Node", "fields": [
            {"name": "next", "type": ["null", "Node"]}]}"#;
        let refused = Avro::<i64>::new(schema).err().expect("it has no end");
        assert!(refused.to_string().contains("it contains itself"), "{refused}");
    }
}
