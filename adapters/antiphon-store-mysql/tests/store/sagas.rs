//! The store passes the suite for stores of sagas.

use crate::conformance::OnServer;

antiphon_testing::saga_conformance!(OnServer);
