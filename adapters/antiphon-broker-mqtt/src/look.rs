//! Looks once at what the broker retains.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Publish;
use uuid::Uuid;

use crate::connect::{Dial, Dialer};
use crate::hub::Fences;

impl Dialer {
    /// Everything retained that matches, by topic, as the broker shows it now.
    ///
    /// # Errors
    /// In words.
    pub(crate) async fn look(
        &self,
        filters: Vec<String>,
    ) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let id = Uuid::new_v4().simple().to_string();
        let fence = self.names.fence(&id);
        let found = Arc::new(Mutex::new(BTreeMap::new()));
        let fences = Arc::new(Fences::default());
        let (notes, passing, own) = (Arc::clone(&found), Arc::clone(&fences), fence.clone());
        let sink = Box::new(move |packet: Publish| {
            if packet.topic == own.as_bytes() {
                passing.pass(&packet.payload);
            } else {
                let topic = String::from_utf8_lossy(&packet.topic).into_owned();
                notes.lock().insert(topic, packet.payload.to_vec());
            }
        });
        let link = self.connect(Dial::passing(self.names.client(&id)), sink).await;
        let link = link.map_err(|error| error.to_string())?;
        // One by one: what a server does not show to everybody is only missing then.
        for filter in filters {
            let subscribed = link.subscribe(vec![filter], QoS::AtMostOnce).await;
            if link.is_over() {
                subscribed?;
            }
        }
        link.subscribe(vec![fence.clone()], QoS::AtMostOnce).await?;
        let (number, passed) = fences.set();
        link.tell(&fence, number.to_string());
        tokio::select! {
            _ = passed => {}
            end = link.ended() => return Err(end.to_string()),
        }
        link.close().await;
        Ok(std::mem::take(&mut *found.lock()))
    }
}
