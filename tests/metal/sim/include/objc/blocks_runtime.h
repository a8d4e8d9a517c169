/* libobjc2 has a header of this name and GCC's runtime has none; libBlocksRuntime's entry points are
 * the same. */
#include <Block.h>
