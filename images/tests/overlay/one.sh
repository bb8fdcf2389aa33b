# The lowest layer: every type, and names, owners, modes, sizes and attributes at their limits.
mkdir t
cd t
mkdir -p bin etc usr/bin usr/lib links opaque replaced-dir removed-dir/deep merged/sub types owners xattrs many long
chmod 0711 usr/bin
chmod 1777 merged
chown 5:6 merged/sub
setfattr -n user.lower -v yes merged/sub
rmdir bin
ln -s usr/bin bin
ln -s /usr/lib lib
ln -s not/there dangling
echo tool >usr/bin/tool
echo linked >links/a
ln links/a links/b
ln links/a links/c
echo original >links/single
ln -s a links/symbolic
ln links/symbolic links/linked-symbolic
mknod links/device c 1 3
for name in old older; do echo covered >opaque/$name; done
mkdir opaque/dir
echo covered >opaque/dir/old
echo old >replaced-dir/inner
echo old >replaced-file
ln -s merged replaced-link
echo gone >removed-file
echo gone >removed-dir/deep/gone
echo lower >merged/lower
echo lower >merged/sub/lower
mknod types/big-numbers c 300 70000
mknod types/block b 7 0
mkfifo types/fifo
: >types/empty
printf x >types/one-byte
for size in 4031 4032 4033 4095 4096 4097 8191 8192 8193 300000; do
  head -c $size /dev/urandom >types/$size
  head -c $size /dev/zero >types/zero-$size
done
head -c 5000000 /dev/urandom >types/large
echo s >owners/setuid; chown 1:2 owners/setuid; chmod 4755 owners/setuid
echo s >owners/setgid; chmod 2711 owners/setgid
echo n >owners/none; chmod 0 owners/none
echo b >owners/large; chown 4000000000:3000000000 owners/large
mkdir owners/sticky; chmod 3777 owners/sticky
cp /bin/true xattrs/capable
setcap cap_net_raw,cap_net_bind_service+ep xattrs/capable
setfattr -n user.note -v 'a value' xattrs/capable
echo x >xattrs/binary; setfattr -n user.binary -v 0x00ff00 xattrs/binary
echo x >xattrs/trusted; setfattr -n trusted.mine -v x xattrs/trusted
echo x >xattrs/large; setfattr -n user.large -v "$(head -c 3000 /dev/zero | tr '\0' v)" xattrs/large
mkdir xattrs/dir; setfattr -n user.dir -v d xattrs/dir
setfattr -h -n trusted.link -v l links/symbolic
for number in $(seq 1 2000); do echo $number >many/file-$number; done
long=$(printf 'n%.0s' $(seq 1 255))
mkdir -p long/$long/$long
echo deep >long/$long/$long/$long
ln -s $long/$long/$long long/link
ln -s "$(head -c 4000 /dev/zero | tr '\0' t)" long/long-target
echo name >long/$'not-utf8-\xff\xfe'
echo name >long/$'new\nline'
echo name >'long/ !"#'
echo name >long/-
touch -d @1500000000.123456789 types/409* etc links/single
touch -d @-86400.5 types/empty
touch -d @9000000000 types/one-byte
cd ..
tar --format=posix --xattrs --xattrs-include='*' --numeric-owner --sort=name -C t -cf layer.tar .
