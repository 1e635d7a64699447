//! What is sensitive does not reach a log.

use contract_tests::sample::v1::Everything;
use contract_tests::sample::v1::everything::Choice;

#[test]
fn sensitive_fields_are_not_shown() {
    let message = Everything { text: "hunter2".to_owned(), small: 7, ..Default::default() };
    let shown = format!("{message:?}");
    assert!(shown.contains("small: 7"), "{shown}");
    assert!(shown.contains("text: ***"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_group_with_a_sensitive_field_is_not_shown() {
    let message =
        Everything { choice: Some(Choice::Left("hunter2".to_owned())), ..Default::default() };
    assert!(!format!("{message:?}").contains("hunter2"));
}
