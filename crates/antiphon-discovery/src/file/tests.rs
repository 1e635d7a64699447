//! Files that change, and how.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);
const NEVER: Duration = Duration::from_secs(3_600);

async fn ports(listed: &mut Listed) -> Result<Vec<u16>, String> {
    let answer = timeout(PATIENCE, listed.next()).await.expect("the change is noticed");
    let instances = answer.map_err(|error| error.chain())?;
    Ok(instances.iter().map(|instance| instance.address.port).collect())
}

fn listed(path: &Path) -> Listed {
    Listed::new(path.to_owned(), "orders".to_owned())
}

#[tokio::test]
async fn a_file_that_is_replaced_is_read_again_without_looking_at_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("instances.toml");
    fs::write(&path, "orders = ['a:1']").unwrap();
    let mut listed = Listed { poll: NEVER, ..listed(&path) };
    assert_eq!(ports(&mut listed).await, Ok(vec![1]));
    let new = folder.path().join("new");
    fs::write(&new, "orders = ['a:1', 'a:2']").unwrap();
    fs::rename(&new, &path).unwrap();
    assert_eq!(ports(&mut listed).await, Ok(vec![1, 2]));
}

/// What Kubernetes does with a mounted map: the file is a link into a folder that is a link itself,
/// and that one is turned.
#[tokio::test]
async fn a_link_in_the_folder_that_is_turned_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, content) in [("..1", "orders = ['a:1']"), ("..2", "orders = ['b:2']\n")] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("instances.toml"), content).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/instances.toml", at("instances.toml")).unwrap();
    let mut listed = Listed { poll: NEVER, ..listed(&at("instances.toml")) };
    assert_eq!(ports(&mut listed).await, Ok(vec![1]));
    symlink("..2", at("..new")).unwrap();
    fs::rename(at("..new"), at("..data")).unwrap();
    assert_eq!(ports(&mut listed).await, Ok(vec![2]));
}

#[tokio::test(start_paused = true)]
async fn where_the_system_tells_nothing_the_time_of_the_file_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("instances.json");
    fs::write(&path, r#"{"orders": ["a:1"]}"#).unwrap();
    let deaf = Folder { changed: Arc::default(), _watcher: None };
    let mut listed = Listed { folder: Some(deaf), ..listed(&path) };
    assert_eq!(ports(&mut listed).await, Ok(vec![1]));
    fs::write(&path, r#"{"orders": ["a:1", "b:2"]}"#).unwrap();
    assert_eq!(ports(&mut listed).await, Ok(vec![1, 2]));
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_refused_once_and_a_correction_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("instances.toml");
    fs::write(&path, "orders = ['a:1'").unwrap();
    let mut listed = listed(&path);
    assert!(ports(&mut listed).await.unwrap_err().contains("until it is corrected"));
    let waiting = timeout(Duration::from_secs(60), listed.next()).await;
    assert!(waiting.is_err(), "nothing is said of the same version again");
    fs::write(&path, "orders = ['a:1', 'b:2']").unwrap();
    assert_eq!(ports(&mut listed).await, Ok(vec![1, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_missing_is_an_error_and_never_an_empty_list() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("instances.toml");
    let mut listed = listed(&path);
    assert!(ports(&mut listed).await.unwrap_err().contains("cannot be read"));
    fs::write(&path, "orders = ['a:1']").unwrap();
    assert_eq!(ports(&mut listed).await, Ok(vec![1]));
    fs::remove_file(&path).unwrap();
    assert!(ports(&mut listed).await.unwrap_err().contains("cannot be read"));
    fs::write(&path, "orders = []").unwrap();
    assert_eq!(ports(&mut listed).await, Ok(vec![]));
}

#[tokio::test(start_paused = true)]
async fn looking_again_reads_the_same_version_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("instances.toml");
    fs::write(&path, "orders = ['a:1']").unwrap();
    let mut listed = listed(&path);
    assert_eq!(ports(&mut listed).await, Ok(vec![1]));
    listed.look_again();
    assert_eq!(ports(&mut listed).await, Ok(vec![1]));
}
