//! What operators work with beside a running system: its databases and its broker, opened by the
//! same settings, without an application around them.

use std::path::Path;

use antiphon_config::{Settings, Sources};

use crate::error::{Error, Result};
use crate::settings::Sections;
use crate::sql::{Engine, Kind, Sql};

/// The settings of a system, and what they name.
#[derive(Clone, Debug)]
pub struct Operations {
    sections: Sections,
}

impl Operations {
    /// Reads the settings. Sections that are not the framework's are left alone.
    ///
    /// # Errors
    /// A setting cannot be read or does not fit.
    pub fn load(sources: &Sources) -> Result<Self> {
        let settings = Settings::load(sources)?;
        Ok(Self { sections: Sections::read(&settings)? })
    }

    /// Opens the database of a service, which must be there.
    ///
    /// # Errors
    /// It is not there, cannot be reached or opened, or is of a newer version.
    pub async fn database(&self, service: &str) -> Result<Sql> {
        let location = self.sections.database.location(service);
        if Kind::of(&location)? == Kind::Sqlite {
            let path = location.trim_start_matches("sqlite:").trim_start_matches("//");
            if !Path::new(path).is_file() {
                return Err(Error::mistake(format!(
                    "{path} is not there; has {service} run with these settings?"
                )));
            }
        }
        Sql::open(&self.sections.database, service).await
    }
}
