# What a layer can do to the one below. Directories without entries of their own are packed by naming files only.
mkdir t
cd t
mkdir -p bin lib links opaque replaced-file replaced-link merged/sub dangling new/implied
: >.wh.removed-file
: >.wh.removed-dir
: >opaque/.wh..wh..opq
echo new >opaque/new
echo inner >replaced-file/inner
echo file >replaced-dir
echo inner >replaced-link/inner
echo upper >merged/upper
echo upper >merged/sub/upper
echo through >bin/through-a-link
: >bin/.wh.tool
echo through >lib/through-a-link
echo through >dangling/x
echo new >new/implied/file
cd ..
tar --format=posix --numeric-owner -C t -cf layer.tar \
  .wh.removed-file .wh.removed-dir ./opaque/new ./opaque/.wh..wh..opq ./replaced-file ./replaced-dir ./replaced-link \
  ./merged/upper merged/sub/upper bin/through-a-link bin/.wh.tool lib/through-a-link dangling/x new/implied/file
# Hard links whose targets only the layer below has: packed with their targets, which are taken out again.
mkdir -p l/links l/usr/bin
echo data >l/links/a
ln l/links/a l/links/from-above
ln l/links/a l/from-elsewhere
echo data >l/links/single
ln l/links/single l/usr/bin/single
tar --format=posix --numeric-owner -C l -rf layer.tar links/a links/from-above from-elsewhere links/single usr/bin/single
tar --delete -f layer.tar links/a links/single
