//! One contract out of the descriptor sets of several services.

use std::collections::HashMap;
use std::sync::Arc;

use antiphon_contract::Contract;
use buffa::Message;
use buffa_descriptor::generated::descriptor::FileDescriptorSet;

use super::RestError;
use crate::service::Service;

/// Reads the descriptor sets that the services were generated with. Each brings everything that it
/// imports, so the same file may come several times.
pub(super) fn read(services: &[Arc<dyn Service>]) -> Result<Contract, RestError> {
    let mut sets: Vec<&'static [u8]> = Vec::new();
    for service in services {
        let set = service.info().descriptor_set;
        if !sets.iter().any(|known| std::ptr::eq(*known, set)) {
            sets.push(set);
        }
    }
    match sets.as_slice() {
        [set] => Ok(Contract::from_descriptor_set(set)?),
        _ => Ok(Contract::from_descriptor_set(&join(&sets)?)?),
    }
}

fn join(sets: &[&'static [u8]]) -> Result<Vec<u8>, RestError> {
    let mut joined = FileDescriptorSet::default();
    let mut places: HashMap<String, usize> = HashMap::new();
    for bytes in sets {
        let Ok(set) = FileDescriptorSet::decode_from_slice(bytes) else {
            // Its mistakes are told by the reader of contracts.
            return Ok(bytes.to_vec());
        };
        for file in set.file {
            let name = file.name.clone().unwrap_or_default();
            match places.get(&name) {
                None => {
                    places.insert(name, joined.file.len());
                    joined.file.push(file);
                }
                Some(place) => {
                    let known = &mut joined.file[*place];
                    let mut bare = (known.clone(), file.clone());
                    bare.0.source_code_info = Default::default();
                    bare.1.source_code_info = Default::default();
                    if bare.0 != bare.1 {
                        return Err(RestError::Versions(name));
                    }
                    if !known.source_code_info.is_set() {
                        *known = file;
                    }
                }
            }
        }
    }
    Ok(joined.encode_to_vec())
}
