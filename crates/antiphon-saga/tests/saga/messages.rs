//! Messages of one shape for the tests; generated code would do the same at length.

use antiphon_messaging::{Command, Payload};
use buffa::bytes::Buf;
use buffa::encoding::{Tag, skip_field};
use buffa::{DecodeContext, DecodeError, EncodeSink, SizeCache, types};

macro_rules! messages {
    ($($name:ident)+) => {$(
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(crate) struct $name {
            pub(crate) id: String,
            pub(crate) note: String,
        }

        impl $name {
            #[allow(dead_code, reason = "not every one is made by its id")]
            pub(crate) fn of(id: &str) -> Self {
                Self { id: id.to_owned(), note: String::new() }
            }
        }

        buffa::impl_default_instance!($name);

        impl buffa::Message for $name {
            fn compute_size(&self, _: &mut SizeCache) -> u32 {
                let size = [&self.id, &self.note].map(|text| 1 + types::string_encoded_len(text));
                u32::try_from(size.iter().sum::<usize>()).unwrap_or(u32::MAX)
            }

            fn write_to(&self, _: &mut SizeCache, to: &mut impl EncodeSink) {
                types::put_string_field(1, &self.id, to);
                types::put_string_field(2, &self.note, to);
            }

            fn merge_field(
                &mut self,
                tag: Tag,
                from: &mut impl Buf,
                _: DecodeContext<'_>,
            ) -> Result<(), DecodeError> {
                match tag.field_number() {
                    1 => types::merge_string(&mut self.id, from),
                    2 => types::merge_string(&mut self.note, from),
                    _ => skip_field(tag, from),
                }
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }

        impl Payload for $name {
            const KIND: &'static str = concat!("test.", stringify!($name));
        }

        impl Command for $name {
            const DESTINATION: &'static str = "desk.commands";
            fn key(&self) -> String {
                self.id.clone()
            }
        }
    )+};
}

messages!(Trip Book Unbook Pay Refund HasPaid Send Done);
