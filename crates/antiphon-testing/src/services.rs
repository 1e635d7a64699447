//! The real servers of the tests.
//!
//! `cargo xtask services up` starts them, and `cargo xtask test` tells the tests where they are by
//! variables. Without a variable a server is looked for where `services up` puts it, so that
//! `cargo test -p …` works at a desk. A test whose server is not there fails and says how to start it.
//!
//! Many tests use these servers at once: whoever wants to stop, pause, kill or fill one starts a
//! [`Private`] server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::proxy::Proxy;

pub use test_servers::{
    Instance, PASSWORD, Records, Service, Trouble, USER, Zone, certificate_authority, folder,
};

/// A server with ports and data of its own, which a test may treat as badly as it likes. It ends and
/// is removed when this is dropped, and by the next test run when the test is killed.
///
/// Everything runs beside the tasks of the test, so that they notice what happens to the server.
#[derive(Clone, Debug)]
pub struct Private(Arc<test_servers::Private>);

impl Private {
    /// Starts a server and waits until it is ready: Redis, NATS and Mosquitto take a tenth of a second,
    /// PostgreSQL and MariaDB a second or two, Kafka and RabbitMQ up to fifteen.
    ///
    /// # Errors
    ///
    /// When it is not installed, or does not get ready.
    ///
    /// # Cancel safety
    ///
    /// What has been started is removed again.
    pub async fn start(service: Service) -> Result<Self, Trouble> {
        Self::start_in(service, None).await
    }

    /// Starts a server that keeps everything in an existing folder, for instance on a small disk. The
    /// folder is removed in the end.
    ///
    /// # Errors
    ///
    /// When it is not installed, or does not get ready.
    ///
    /// # Cancel safety
    ///
    /// What has been started is removed again.
    pub async fn start_in(service: Service, home: Option<&Path>) -> Result<Self, Trouble> {
        let home: Option<PathBuf> = home.map(Path::to_owned);
        let start = move || test_servers::Private::start_in(service, home.as_deref());
        aside(start).await?.map(|private| Self(Arc::new(private)))
    }

    /// Starts a server that clients reach through a proxy, at [`Proxy::url`]. Kafka tells its clients
    /// where to go, so it has to know.
    ///
    /// # Errors
    ///
    /// When it is not installed, or does not get ready.
    ///
    /// # Cancel safety
    ///
    /// What has been started is removed again.
    pub async fn behind_proxy(service: Service) -> Result<(Self, Proxy), Trouble> {
        Self::behind_proxy_in(service, None).await
    }

    /// [`Self::behind_proxy`] with everything in an existing folder, which is removed in the end.
    ///
    /// # Errors
    ///
    /// When it is not installed, or does not get ready.
    ///
    /// # Cancel safety
    ///
    /// What has been started is removed again.
    pub async fn behind_proxy_in(
        service: Service,
        home: Option<&Path>,
    ) -> Result<(Self, Proxy), Trouble> {
        let mut private = test_servers::Private::reserve(service, home)?;
        let proxy = Proxy::in_front_of(&private.url()).await;
        let proxy = proxy.map_err(|error| Trouble::new(format!("there is no proxy: {error}")))?;
        private.advertise(proxy.address().port());
        let start = move || private.start_again().map(|()| private);
        let private = aside(start).await??;
        Ok((Self(Arc::new(private)), proxy))
    }

    /// Its address, without TLS and with full rights.
    #[must_use]
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Its address over TLS, for [`USER`].
    #[must_use]
    pub fn tls_url(&self) -> String {
        self.0.tls_url()
    }

    /// Its port without TLS.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.instance().ports.plain
    }

    /// Its files.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        self.0.instance()
    }

    /// Kills it at once, with all its processes. Its data stays as it is.
    ///
    /// # Errors
    ///
    /// When the runtime is ending.
    ///
    /// # Cancel safety
    ///
    /// It is killed all the same.
    pub async fn kill(&self) -> Result<(), Trouble> {
        let private = Arc::clone(&self.0);
        aside(move || private.instance().kill()).await
    }

    /// Ends it in order.
    ///
    /// # Errors
    ///
    /// When it cannot be ended.
    ///
    /// # Cancel safety
    ///
    /// It is ended all the same.
    pub async fn stop(&self) -> Result<(), Trouble> {
        let private = Arc::clone(&self.0);
        aside(move || private.instance().stop().map(|_| ())).await?
    }

    /// Starts it again after [`Self::kill`] or [`Self::stop`], on the same ports, with its data.
    ///
    /// # Errors
    ///
    /// When it does not get ready.
    ///
    /// # Cancel safety
    ///
    /// It is started all the same.
    pub async fn start_again(&self) -> Result<(), Trouble> {
        let private = Arc::clone(&self.0);
        aside(move || private.start_again()).await?
    }

    /// Ends it in order and starts it again.
    ///
    /// # Errors
    ///
    /// When it cannot be ended, or does not get ready.
    ///
    /// # Cancel safety
    ///
    /// It may stay stopped.
    pub async fn restart(&self) -> Result<(), Trouble> {
        self.stop().await?;
        self.start_again().await
    }

    /// Stops its processes where they are: connections stay open, and nothing answers.
    ///
    /// # Errors
    ///
    /// When the runtime is ending.
    ///
    /// # Cancel safety
    ///
    /// It is paused all the same.
    pub async fn pause(&self) -> Result<(), Trouble> {
        let private = Arc::clone(&self.0);
        aside(move || private.instance().pause()).await
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    ///
    /// When the runtime is ending.
    ///
    /// # Cancel safety
    ///
    /// It goes on all the same.
    pub async fn resume(&self) -> Result<(), Trouble> {
        let private = Arc::clone(&self.0);
        aside(move || private.instance().resume()).await
    }
}

/// Runs what blocks on a thread of its own.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Trouble> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Trouble::new(format!("the server was left alone: {error}")))
}
