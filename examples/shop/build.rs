//! Turns the contract into Rust.

fn main() {
    antiphon_build::compile(
        &[
            "shop/inventory/v1/inventory.proto",
            "shop/inventory/v1/messages.proto",
            "shop/notifications/v1/notifications.proto",
            "shop/orders/v1/events.proto",
            "shop/orders/v1/orders.proto",
            "shop/payments/v1/messages.proto",
            "shop/payments/v1/payments.proto",
            "shop/points/v1/points.proto",
            "shop/shipping/v1/shipping.proto",
        ],
        &["proto"],
    );
}
