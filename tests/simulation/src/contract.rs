//! The messages of the simulated shop. Each has the same two fields; generated code would do the
//! same, but bring more than a simulator needs.

use antiphon_messaging::{Command, Event, Payload};
use buffa::bytes::Buf;
use buffa::encoding::{Tag, skip_field};
use buffa::{DecodeContext, DecodeError, EncodeSink, SizeCache, types};

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(crate) struct $name {
            pub(crate) order: String,
            pub(crate) value: i64,
        }

        impl $name {
            #[allow(dead_code, reason = "one of them is only ever empty")]
            pub(crate) fn of(order: &str, value: i64) -> Self {
                Self { order: order.to_owned(), value }
            }
        }

        buffa::impl_default_instance!($name);

        impl buffa::Message for $name {
            fn compute_size(&self, _: &mut SizeCache) -> u32 {
                let text = 1 + types::string_encoded_len(&self.order);
                let number = 1 + types::int64_encoded_len(self.value);
                u32::try_from(text + number).unwrap_or(u32::MAX)
            }

            fn write_to(&self, _: &mut SizeCache, to: &mut impl EncodeSink) {
                types::put_string_field(1, &self.order, to);
                types::put_int64_field(2, self.value, to);
            }

            fn merge_field(
                &mut self,
                tag: Tag,
                from: &mut impl Buf,
                _: DecodeContext<'_>,
            ) -> Result<(), DecodeError> {
                match tag.field_number() {
                    1 => types::merge_string(&mut self.order, from)?,
                    2 => self.value = types::decode_int64(from)?,
                    _ => skip_field(tag, from)?,
                }
                Ok(())
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }

        impl Payload for $name {
            const KIND: &'static str = concat!("simulation.", stringify!($name));
        }
    )+};
}

messages! {
    /// What the saga knows. The value is the number of articles.
    PlaceOrder
    /// Sets articles aside.
    Reserve
    /// Puts them back.
    Release
    /// Hands them over.
    Ship
    /// Takes money.
    Charge
    /// Takes the money that is to be taken, in a later transaction.
    Capture
    /// Gives the money back.
    Refund
    /// Somebody wants something.
    OrderPlaced
    /// They get it.
    OrderConfirmed
    /// They do not.
    OrderCancelled
    /// What participants answer.
    Done
}

macro_rules! commands {
    ($topic:literal: $($name:ident)+) => {$(
        impl Command for $name {
            const DESTINATION: &'static str = $topic;
            fn key(&self) -> String {
                self.order.clone()
            }
        }
    )+};
}

commands!("inventory.commands": Reserve Release Ship);
commands!("payments.commands": Charge Refund);
commands!("payments.captures": Capture);

macro_rules! events {
    ($($name:ident)+) => {$(
        impl Event for $name {
            const TOPIC: &'static str = "orders";
            fn key(&self) -> String {
                self.order.clone()
            }
        }
    )+};
}

events!(OrderPlaced OrderConfirmed OrderCancelled);
