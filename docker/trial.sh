#!/bin/sh
# Keys, certificates, public records and a job for docker/compose.yaml, made by the image itself; then each site approves the job.
#
#   docker/trial.sh [FOLDER]      default: docker/trial
#
# The files belong to the user that the containers run as: FEDETHOS_USER (uid:gid), else 10001:10001 (needs root for the chown).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/trial}
image=${FEDETHOS_IMAGE:-fedethos:latest}
user=${FEDETHOS_USER:-10001:10001}

if [ -e "$folder" ]; then
  echo "$folder exists already. Delete it, or name another folder." >&2
  exit 2
fi
mkdir -p "$folder"
chown "$user" "$folder"
run() {
  docker run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp:mode=1777 --user "$user" \
    -v "$folder:/trial" -w /trial "$image" "$@"
}
run keys trial /trial --address 0.0.0.0:9443 --connect coordinator:9443
for site in site-1 site-2 site-3; do
  run client approve /trial/job.yaml "/trial/$site/site.yaml" --yes >/dev/null
  echo "$site approved the job."
done
echo "Next: docker-compose -f $here/compose.yaml up -d"
