# A third layer: what was removed comes back, what was opaque is removed, links to what the second layer copied.
mkdir t
cd t
mkdir -p opaque merged removed-dir links replaced-file
: >opaque/.wh.new
echo newest >opaque/newest
echo back >removed-dir/back
echo back >removed-file
: >merged/.wh.lower
: >merged/.wh.never-was
: >.wh.nothing
: >links/.wh.b
echo changed >links/c
: >.wh.replaced-file
echo again >replaced-file/again
cd ..
tar --format=posix --numeric-owner -C t -cf layer.tar \
  ./opaque ./removed-dir ./removed-file merged/.wh.lower merged/.wh.never-was .wh.nothing links/.wh.b links/c \
  .wh.replaced-file ./replaced-file
mkdir -p l/links
echo data >l/links/from-above
ln l/links/from-above l/links/from-third
tar --format=posix --numeric-owner -C l -rf layer.tar links/from-above links/from-third
tar --delete -f layer.tar links/from-above
