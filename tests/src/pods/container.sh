# The first process of a container, in namespaces of its own: makes the root file system that the
# image and the kubelet would, gives up what it may do, and becomes the program.
set -eu
files=$1 image=$2 host=$3 user=$4 secret=$5 claim=$6
shift 6
root=$files/root
hostname "$host"
mount --make-rprivate /
mount -t tmpfs -o mode=755 image "$root"
cd "$root"
for folder in bin lib lib32 lib64 libx32 sbin usr; do
  if [ -L "/$folder" ]; then
    ln -s "$(readlink "/$folder")" "$folder"
  elif [ -d "/$folder" ]; then
    mkdir "$folder"
    mount --rbind "/$folder" "$folder"
  fi
done
mkdir dev etc image proc sys
mkdir -m 1777 tmp
mount --rbind /dev dev
mount --rbind /sys sys
mount -t proc proc proc
cp /etc/ld.so.cache /etc/nsswitch.conf etc
cp "$files/hosts" "$files/resolv.conf" etc
touch image/allfold
mount --bind "$image" image/allfold
mkdir -p ".$secret"
mount --bind "$files/../secret" ".$secret"
if [ -n "$claim" ]; then
  mkdir -p ".$claim"
  mount --bind "$files/../claim" ".$claim"
fi
exec chroot . setpriv --reuid "$user" --regid "$user" --groups "$user" --no-new-privs \
  --bounding-set=-all --inh-caps=-all --pdeathsig KILL -- "$@"
