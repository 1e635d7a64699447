//! The resolver against answers of an API server, as its documentation shows them: Kubernetes is not to
//! be had in the tests.

mod conformance;
mod server;
mod watches;
