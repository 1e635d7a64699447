//! Instances that a file lists.

use crate::fleet::{SERVICE, instances_come_and_go};

#[tokio::test]
async fn instances_listed_in_a_file_come_and_go() {
    let settings = format!("[clients.\"{SERVICE}\"]\ntarget = \"file://{{list}}#inventory\"\n");
    instances_come_and_go(&settings).await;
}
